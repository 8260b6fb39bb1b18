"""Choose the threshold at which two detectors score together.

    python manage_detectors.py together weights/vit weights/efficientnet_lite0 --data dataset/
    python infer_vit.py photos/ --together weights/efficientnet_lite0

The mean of their calibrated logits is calibrated like a detector: temperature and threshold are
chosen on the validation pictures of --data. The first one's detector.json keeps them, with the
SHA-256 of the other's graph, so that they hold for that one alone.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from pipeline.common.command_line import script_parser
from pipeline.detectors import real_scores
from pipeline.detectors.calibration import RULES, Calibration
from pipeline.detectors.detector import GRAPH, change_detector, load_detector
from pipeline.detectors.runtime import Runtime
from pipeline.detectors.together import SECTION, paired, temperatures


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__, "together")
    parser.add_argument("first", type=Path, help="the detector folder that keeps the threshold")
    parser.add_argument("second", type=Path, help="the detector folder that scores along")
    parser.add_argument(
        "--data", type=Path, default=Path("dataset"), metavar="DIR|CSV", help="as for training"
    )
    parser.add_argument(
        "--threshold-rule",
        metavar="RULE",
        help=f"{RULES} (default: the first one's)".replace("%", "%%"),
    )
    args = parser.parse_args(arguments)
    metrics = calibrate_together(args.first, args.second, args.data, args.threshold_rule)
    print(
        f"{args.first} with {args.second}: validation AUC {metrics['auc']:.3f}; "
        f"{metrics['recall_fake']:.1%} of the fakes found, {1 - metrics['recall_real']:.1%} of the "
        "real faces called fake."
    )
    return 0


def calibrate_together(first: Path, second: Path, data: Path, rule: str | None) -> dict:
    """Write the pair's calibration into the detector.json of `first`; what was measured of it.
    Raises UserError."""
    from pipeline.detectors.versions import copies_of, copy_detector
    from pipeline.training.finishing import calibrate_and_evaluate, calibration_samples, predict

    one, other = load_detector(first), load_detector(second)
    pair = paired(one, other, Calibration(1.0, 0.5, 0.5, "none yet"))
    _, samples = calibration_samples(data)
    look = partial(
        predict,
        Runtime.of(pair).logits,
        architecture=one.architecture,
        resize_filter=one.resize_filter,
    )
    calibration, _, sections = calibrate_and_evaluate(samples, look, rule or one.calibration.rule)
    copies = copies_of(one.folder)
    with change_detector(one) as (_, description):
        description.setdefault(SECTION, {})[other.description["files"][GRAPH]] = {
            "name": other.name,
            "temperatures": temperatures(one, other),
            "calibration": asdict(calibration),
            "metrics": sections["metrics"],
            real_scores.SECTION: sections[real_scores.SECTION],
        }
    for copy in copies:
        copy_detector(one.folder, copy)
    return sections["metrics"]
