"""Keep a detector's weights once and in 8 bits, for scoring and for training on.

    python manage_detectors.py shrink weights/vit --data dataset/

A folder of a torch network holds its weights twice as 32-bit floats: in the graph that scores, and
in model.safetensors, which training goes on from. After this, the graph holds them with 8 bits and
is read by both (eight_bits.py): an eighth of the size. It is taken only if on several hundred
validation faces its fake_probability lies within 0.01 of the former one's and at most 0.1 % of the
verdicts change; of a network that was started from 8-bit weights and of which only the layer norms
have learned (--tuning norm) nothing changes at all. The folder is replaced as a whole, at the end.
"""

from pathlib import Path

from pipeline.common.command_line import script_parser
from pipeline.common.errors import UserError
from pipeline.data.dataset import load_dataset
from pipeline.detectors.detector import GRAPH, INT8_GRAPH, change_detector, load_detector
from pipeline.evaluation.precision import (
    FEWEST_FACES,
    compare,
    pictures_to_check,
    probabilities_of,
)


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__, "shrink")
    parser.add_argument("detector", type=Path, help="the detector folder")
    parser.add_argument(
        "--data", type=Path, default=Path("dataset"), metavar="DIR|CSV", help="as for training"
    )
    args = parser.parse_args(arguments)
    largest, changed = shrink(args.detector, args.data)
    print(
        f"{args.detector}: 8-bit weights; fake_probability differs by at most {largest:.4f}, "
        f"{changed:.2%} of the verdicts are others."
    )
    return 0


def shrink(folder: Path, data: Path, faces: int = 600) -> tuple[float, float]:
    """Give the detector in `folder` 8-bit weights, checked on up to `faces` validation pictures.

    Returns the largest difference of fake_probability and the share of changed verdicts, both 0…1.
    Raises UserError where they are too large, where there are fewer than FEWEST_FACES, and where
    the network is not one that can be kept so.
    """
    from pipeline.torch_engine.eight_bits import pack
    from pipeline.torch_engine.weights import WEIGHTS, read_weights

    detector = load_detector(folder)
    if detector.architecture.framework != "torch":
        raise UserError(f"{folder}: only torch networks' weights are kept in 8 bits.")
    if "weights_in" in detector.description:
        raise UserError(f"{folder}: its weights are kept in 8 bits already.")
    if "hub" in detector.description:
        raise UserError(
            f"{folder}: other libraries load its weights as they are: shrink the detector that it "
            "was made of, and write that for them (manage_detectors.py for-hub)."
        )
    pixels = pictures_to_check(detector, load_dataset(data).validate, faces)
    if len(pixels) < FEWEST_FACES:
        raise UserError(
            f"{data}: this is checked on at least {FEWEST_FACES} validation pictures, and these "
            f"are {len(pixels)}."
        )
    state, _ = read_weights(folder, detector.architecture)
    with change_detector(detector, without=(WEIGHTS, *INT8_GRAPH)) as (new, description):
        try:
            pack(new / GRAPH, state)
        except ValueError as error:
            raise UserError(f"{folder}: this network cannot be kept in 8 bits: {error}.") from None
        description.pop("precision", None)  # was found for the other graph
        description["weights_in"] = "graph"
        before, after = (
            probabilities_of(detector, where, "fp32", pixels)[0] for where in (folder, new)
        )
        found = compare(detector.calibration, before, after)
        if not found["same"]:
            raise UserError(
                f"{folder}: with 8-bit weights fake_probability differs by up to "
                f"{found['largest_difference']:.3f} and {found['changed_verdicts']:.1%} of the "
                "verdicts change, so it stays as it is."
            )
    return found["largest_difference"], found["changed_verdicts"]
