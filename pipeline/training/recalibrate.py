"""Choose a detector's temperature and threshold again, on labelled pictures of your own.

    python manage_detectors.py recalibrate weights/meso4 --data dataset/
    python manage_detectors.py recalibrate weights/meso4 --data mine/ --threshold-rule fpr=0.02

The network stays as it is. Its threshold was chosen on the validation pictures of its training; if
your photos are of another kind, softer or more compressed, it may call too many of them fake. The
real and fake pictures in validate/ of --data decide instead. The sections `calibration` and
`metrics` of detector.json, the model card and its figures are written again; the folder is replaced
as a whole, and so is its copy if versions of it are kept.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.common.command_line import script_parser
from pipeline.detectors.calibration import DEFAULT_RULE, RULES
from pipeline.detectors.detector import INT8_GRAPH, change_detector, load_detector


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__, "recalibrate")
    parser.add_argument("detector", type=Path, help="the detector folder")
    parser.add_argument(
        "--data", type=Path, default=Path("dataset"), metavar="DIR|CSV", help="as for training"
    )
    parser.add_argument("--threshold-rule", default=DEFAULT_RULE, metavar="RULE", help=RULES)
    args = parser.parse_args(arguments)
    before = load_detector(args.detector).calibration
    description = recalibrate(args.detector, args.data, args.threshold_rule)
    metrics = description["metrics"]
    print(
        f"{args.detector}: threshold {before.threshold:.3f} → "
        f"{description['calibration']['threshold']:.3f}; at it {metrics['recall_fake']:.1%} of the "
        f"fakes found, {1 - metrics['recall_real']:.1%} of the real faces called fake."
    )
    return 0


def recalibrate(folder: Path, data: Path, rule: str) -> dict:
    """Calibrate the detector in `folder` on the validation pictures of `data` by one of
    calibration.RULES; its new description.

    What was measured on unseen kinds, at no threshold, stays. A precision below 32 bits was checked
    with the old calibration, so it is dropped. Raises UserError.
    """
    from pipeline.detectors.runtime import Runtime
    from pipeline.detectors.versions import copies_of, copy_detector
    from pipeline.evaluation.model_card import write_model_card
    from pipeline.training.finishing import (
        calibrate_and_evaluate,
        calibration_samples,
        predict,
    )

    detector = load_detector(folder)
    data_name, samples = calibration_samples(data)
    labels = np.array([sample.label for sample in samples])
    runtime = Runtime(detector.graph, detector.architecture)
    look = partial(
        predict,
        runtime.logits,
        architecture=detector.architecture,
        resize_filter=detector.resize_filter,
    )
    _, probabilities, sections = calibrate_and_evaluate(samples, look, rule)
    copies = copies_of(detector.folder)
    with change_detector(detector, without=INT8_GRAPH) as (new, description):
        kept = {
            name: value
            for name, value in description["metrics"].items()
            if name.startswith("unseen_")
        }
        description |= sections
        description["metrics"] |= kept
        description["calibration"]["data"] = data_name
        if description.get("precision", {}).get("order", ["fp32"]) != ["fp32"]:
            del description["precision"]
            print(
                "It scores in fp32 until `manage_detectors.py precision` is run again.",
                file=sys.stderr,
            )
        write_model_card(new, description, labels, probabilities)
    for copy in copies:
        copy_detector(detector.folder, copy)
    return description
