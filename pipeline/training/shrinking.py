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

import numpy as np

from pipeline.common.command_line import script_parser
from pipeline.common.errors import UserError
from pipeline.data.dataset import load_dataset
from pipeline.detectors.detector import GRAPH, INT8_GRAPH, change_detector, load_detector
from pipeline.detectors.runtime import Runtime
from pipeline.evaluation.precision import (
    CHANGED_VERDICTS,
    FEWEST_FACES,
    LARGEST_DIFFERENCE,
    pictures_to_check,
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

    Returns the largest difference of fake_probability and the share of changed verdicts. Raises
    UserError where they are too large, or the network is not one of torch's.
    """
    from pipeline.torch_engine.eight_bits import pack
    from pipeline.torch_engine.weights import WEIGHTS, read_weights

    detector = load_detector(folder)
    if detector.architecture.framework != "torch":
        raise UserError(f"{folder}: only torch networks' weights are kept in 8 bits.")
    pixels = pictures_to_check(detector, load_dataset(data).validate, faces)
    if len(pixels) < FEWEST_FACES:
        raise UserError(
            f"{data}: this is checked on at least {FEWEST_FACES} validation pictures, and these "
            f"are {len(pixels)}."
        )
    state, _ = read_weights(folder, detector.architecture)
    with change_detector(detector, without=(WEIGHTS, *INT8_GRAPH)) as (new, description):
        pack(new / GRAPH, state)
        description.pop("precision", None)  # was found for the other graph
        description["weights_in"] = "graph"
        before, after = (
            detector.calibration.probability(_logits(graph, detector.architecture, pixels))
            for graph in (detector.graph, new / GRAPH)
        )
        verdict = detector.calibration.verdict
        changed = np.mean([verdict(a) != verdict(b) for a, b in zip(before, after, strict=True)])
        largest = np.abs(before - after).max()
        if largest > LARGEST_DIFFERENCE or changed > CHANGED_VERDICTS:
            raise UserError(
                f"{folder}: with 8-bit weights fake_probability differs by up to {largest:.3f} and "
                f"{changed:.1%} of the verdicts change, so it stays as it is."
            )
    return float(largest), float(changed)


def _logits(graph: Path, architecture, pixels: np.ndarray, batch: int = 16) -> np.ndarray:
    runtime = Runtime(graph, architecture, "cpu")
    parts = (pixels[first : first + batch] for first in range(0, len(pixels), batch))
    return np.concatenate([runtime.logits(part) for part in parts])
