"""Keep a detector's weights once and in 8 bits, for scoring and for training on.

    python manage_detectors.py shrink weights/vit --data dataset/
    python manage_detectors.py shrink weights/vit --keep-graph

A folder that training wrote holds its weights twice as 32-bit floats: in the graph that scores, and
in model.safetensors or model.weights.h5, which training goes on from. After this, the graph holds
them with 8 bits and is read by both (graph_weights.py): an eighth of the size. It is taken only if
on several hundred validation faces its fake_probability lies within 0.01 of the former one's and at
most 0.1 % of the verdicts change; of a network that was started from 8-bit weights and of which
only the layer norms have learned (--tuning norm) nothing changes at all. Where more would change,
the smaller convolutions keep 32 bits. With --recalibrate, for a detector that nobody uses yet, the
verdicts may change, and the threshold is chosen again for the new weights.

With --keep-graph the graph keeps its 32 bits and all scores stay the same: half of the size. The
folder is replaced as a whole, at the end. A pair that it belongs to (manage_detectors.py together)
has to be calibrated again, for it holds for one very graph.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from numpy.typing import ArrayLike

from pipeline.common.command_line import script_parser
from pipeline.common.errors import UserError
from pipeline.data.dataset import load_dataset
from pipeline.detectors.calibration import RULES
from pipeline.detectors.detector import GRAPH, INT8_GRAPH, Detector, change_detector, load_detector
from pipeline.evaluation.precision import (
    FEWEST_FACES,
    LARGEST_DIFFERENCE,
    compare,
    pictures_to_check,
    probabilities_of,
)
from pipeline.training.recalibrate import recalibrate

WEIGHTS = {"keras": "model.weights.h5", "torch": "model.safetensors"}
EIGHT_BITS_FROM = (10_000, 30_000, 100_000, 300_000)  # numbers in a convolution


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__, "shrink")
    parser.add_argument("detector", type=Path, help="the detector folder")
    parser.add_argument(
        "--data", type=Path, default=Path("dataset"), metavar="DIR|CSV", help="as for training"
    )
    parser.add_argument(
        "--keep-graph", action="store_true", help="its numbers stay, and serve training, too"
    )
    parser.add_argument("--recalibrate", metavar="RULE", help=RULES.replace("%", "%%"))
    args = parser.parse_args(arguments)
    if args.keep_graph:
        size = keep_in_graph(args.detector)
        print(f"{args.detector}: a graph of {size / 1e6:.1f} MB, which scores as it did.")
        return 0
    largest, changed = shrink(args.detector, args.data, recalibrate_by=args.recalibrate)
    print(
        f"{args.detector}: 8-bit weights; fake_probability differs by at most {largest:.4f}, "
        f"{changed:.2%} of the verdicts are others."
    )
    return 0


def keep_in_graph(folder: Path) -> int:
    """Keep the weights in the graph alone, as they are; the graph's new size in bytes.

    Raises UserError where the network is not one that can be kept so.
    """
    detector = _with_weights(folder)
    state = _state(detector)
    with change_detector(detector, without=tuple(WEIGHTS.values())) as (new, description):
        _pack(folder, new, state, None)
        description["weights_in"] = "graph"
    return (folder / GRAPH).stat().st_size


def shrink(
    folder: Path, data: Path, faces: int = 600, recalibrate_by: str | None = None
) -> tuple[float, float]:
    """Give the detector in `folder` 8-bit weights, checked on up to `faces` validation pictures,
    and a threshold for them by the rule `recalibrate_by`, if any. Where that changes too much, the
    smaller convolutions keep their 32 bits.

    Returns the largest difference of fake_probability and the share of changed verdicts, both 0…1.
    Raises UserError where they are too large even so, where there are fewer than FEWEST_FACES, and
    where the network is not one that can be kept so.
    """
    detector = _with_weights(folder)
    pixels = pictures_to_check(detector, load_dataset(data).validate, faces)
    if len(pixels) < FEWEST_FACES:
        raise UserError(
            f"{data}: this is checked on at least {FEWEST_FACES} validation pictures, and these "
            f"are {len(pixels)}."
        )
    state = _state(detector)
    before, _ = probabilities_of(detector, folder, "fp32", pixels)
    with change_detector(detector, without=(*WEIGHTS.values(), *INT8_GRAPH)) as (new, description):
        description.pop("precision", None)  # was found for the other graph
        description["weights_in"] = "graph"
        for fewest in EIGHT_BITS_FROM:
            _pack(folder, new, state, fewest)
            after, _ = probabilities_of(detector, new, "fp32", pixels)
            found = compare(detector.calibration, before, after)
            is_near = found["largest_difference"] <= LARGEST_DIFFERENCE
            if found["same"] or (recalibrate_by and is_near):
                break
        else:
            raise UserError(
                f"{folder}: with 8-bit weights fake_probability differs by up to "
                f"{found['largest_difference']:.3f} and {found['changed_verdicts']:.1%} of the "
                "verdicts change, so it stays as it is."
            )
    if recalibrate_by:
        recalibrate(folder, data, recalibrate_by)
    return found["largest_difference"], found["changed_verdicts"]


def _with_weights(folder: Path) -> Detector:
    """A detector whose weights can be moved into its graph. Raises UserError for others."""
    detector = load_detector(folder)
    if "hub" in detector.description:
        raise UserError(
            f"{folder}: other libraries load its weights as they are: shrink the detector that it "
            "was made of, and write that for them (manage_detectors.py for-hub)."
        )
    if "weights_in" in detector.description:
        raise UserError(f"{folder}: its weights are kept in the graph already.")
    file = WEIGHTS[detector.architecture.framework]
    if file not in detector.description["files"]:
        raise UserError(f"{folder}: there is no {file} to shrink.")
    return detector


def _state(detector: Detector) -> Mapping[str, ArrayLike]:
    if detector.architecture.framework == "torch":
        from pipeline.torch_engine.weights import read_weights

        return read_weights(detector.folder, detector.architecture)[0]
    from pipeline.keras_engine.state import state_of

    network = detector.architecture.build()
    network.load_weights(detector.folder / WEIGHTS["keras"])
    return state_of(network)


def _pack(folder: Path, new: Path, state: Mapping[str, ArrayLike], fewest: int | None) -> None:
    from pipeline.detectors.graph_weights import pack

    shutil.copyfile(folder / GRAPH, new / GRAPH)
    try:
        pack(new / GRAPH, state, fewest)
    except ValueError as error:
        raise UserError(f"{folder}: its graph cannot keep the weights: {error}.") from None
