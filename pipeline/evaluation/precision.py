"""Find the fastest precision in which a detector gives the same answers, and record it.

    python manage_detectors.py precision weights/meso4 --data dataset/

Candidates besides 32-bit floats are bfloat16, where the processor has it, and 8-bit integers: the
graph is quantised after training by NNCF, calibrated on training pictures. A candidate is taken
only if on every one of several hundred validation faces its fake_probability lies within 0.01 of
that of 32-bit floats, if at most 0.1 % of the verdicts change, and if it is faster here. What was
tried, what it changed and what was chosen becomes the section `precision` of detector.json; scoring
goes by it. The folder is replaced as a whole, at the end.
"""

import contextlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib import metadata
from pathlib import Path

import numpy as np

from pipeline.common.command_line import positive_int, run, script_parser
from pipeline.common.errors import ImageError, UserError
from pipeline.common.graphs import openvino_core, ov
from pipeline.common.machine import usable_cores
from pipeline.data.dataset import Sample, load_dataset
from pipeline.detectors.calibration import Calibration
from pipeline.detectors.detector import INT8_GRAPH, Detector, change_detector, load_detector
from pipeline.detectors.runtime import PRECISIONS, Runtime, is_available
from pipeline.photos.images import read_image, resize

LARGEST_DIFFERENCE = 0.01  # of fake_probability, on any face
CHANGED_VERDICTS = 0.001  # of the faces
FEWEST_FACES = 200  # that can tell
_BATCH = 32
_REPOSITORY = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__, "precision")
    parser.add_argument("detector", type=Path, help="the detector folder")
    parser.add_argument(
        "--data", type=Path, default=Path("dataset"), metavar="DIR|CSV", help="as for training"
    )
    parser.add_argument(
        "--faces",
        type=positive_int,
        default=600,
        metavar="N",
        help="number of faces to check (default: 600)",
    )
    parser.add_argument(
        "--calibrate-on",
        type=positive_int,
        default=300,
        metavar="N",
        help="number of faces (default: 300)",
    )
    args = parser.parse_args(arguments)
    section = choose_precision(args.detector, args.data, args.faces, args.calibrate_on)
    print(_table(section))
    return 0


def choose_precision(folder: Path, data: Path, faces: int = 600, calibrate_on: int = 300) -> dict:
    """Check the precisions of the detector in `folder`; return the section that it now has.

    `data` is what it was trained on, as in `load_dataset`: 8-bit integers are calibrated on
    `calibrate_on` training pictures, everything is checked on `faces` validation pictures, both
    spread over their set. Raises UserError where there are fewer than FEWEST_FACES.
    """
    detector = load_detector(folder)
    dataset = load_dataset(data)
    checked_on = pictures_to_check(detector, dataset.validate, faces)
    if len(checked_on) < FEWEST_FACES:
        raise UserError(
            f"{data}: a precision is checked on at least {FEWEST_FACES} validation pictures, and "
            f"these are {len(checked_on)}."
        )
    with change_detector(detector, without=INT8_GRAPH) as (new, description):
        if "weights_in" not in description:  # NNCF wants 32-bit floats
            _quantise(detector, pictures_to_check(detector, dataset.train, calibrate_on), new)
        section = check_precisions(detector, new, checked_on)
        if "int8" not in section["order"]:
            for name in INT8_GRAPH:
                (new / name).unlink(missing_ok=True)
        description["precision"] = section
    return section


def check_precisions_apart(folder: Path, data: Path) -> None:
    """`choose_precision` in a process of its own, for NNCF's torch and TensorFlow do not mix.

    Says on standard error what came of it. Where it fails the detector is whole: it scores in fp32.
    """
    command = [sys.executable, "-m", "pipeline.evaluation.precision", folder.resolve(), "--data"]
    print("Looking for the fastest precision that changes nothing.", file=sys.stderr)
    done = subprocess.run([*command, data.resolve()], cwd=_REPOSITORY, stdout=sys.stderr)
    if done.returncode:
        print(f"{folder}: it scores in fp32, since nothing else was checked.", file=sys.stderr)


def check_precisions(detector: Detector, folder: Path, pixels: np.ndarray) -> dict:
    """The section `precision`: all that this processor can do with the graphs in `folder`.

    pixels (N, size, size, 3) uint8. `order` names what may be used, the fastest first.
    """
    reference, seconds = probabilities_of(detector, folder, "fp32", pixels)
    tried = {"fp32": {"cpu_ms_per_face": 1000 * seconds}}
    for precision in PRECISIONS:
        if precision == "fp32":
            continue
        if not (folder / PRECISIONS[precision][2]).exists():
            continue
        if not is_available(precision):
            tried[precision] = {"available": False}
            continue
        outputs, seconds = probabilities_of(detector, folder, precision, pixels)
        differences = compare(detector.calibration, reference, outputs)
        tried[precision] = {**differences, "cpu_ms_per_face": 1000 * seconds}
    order = sorted(
        (name for name, found in tried.items() if found.get("same", name == "fp32")),
        key=lambda name: tried[name]["cpu_ms_per_face"],
    )
    order = order[: order.index("fp32") + 1]  # what is slower is of no use
    return {
        "order": order,
        "faces": len(pixels),
        "tried": tried,
        "where": {
            "processor": openvino_core().get_property("CPU", "FULL_DEVICE_NAME"),
            "can": openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
            "openvino": ov.__version__,
            "nncf": metadata.version("nncf"),
            "date": date.today().isoformat(),
        },
    }


def compare(calibration: Calibration, before: np.ndarray, after: np.ndarray) -> dict:
    """How fake_probability (N,) of the same faces differs; `same`: by no more than is allowed."""
    verdict = calibration.verdict
    changed = np.mean([verdict(a) != verdict(b) for a, b in zip(before, after, strict=True)])
    differences = np.abs(after - before)
    return {
        "largest_difference": float(differences.max()),
        "mean_difference": float(differences.mean()),
        "changed_verdicts": float(changed),
        "same": bool(differences.max() <= LARGEST_DIFFERENCE and changed <= CHANGED_VERDICTS),
    }


def probabilities_of(
    detector: Detector, folder: Path, precision: str, pixels: np.ndarray
) -> tuple[np.ndarray, float]:
    """fake_probability (N,) of pixels (N, size, size, 3) uint8 by the graph in `folder` in one of
    runtime.PRECISIONS, and the processor's seconds for a face.

    Time of the processor, of all its cores, rather than of the clock: other programs may run. The
    median over batches of the same size, of which the first prepares and does not count.
    """
    runtime = Runtime(
        folder / PRECISIONS[precision][2], detector.architecture, "cpu", precision=precision
    )
    logits, seconds = [], []
    for start in range(0, len(pixels), _BATCH):
        batch = pixels[start : start + _BATCH]
        begin = time.process_time()
        logits.append(runtime.logits(batch))
        seconds.append((time.process_time() - begin) / len(batch))
    return detector.calibration.probability(np.concatenate(logits)), float(np.median(seconds[1:]))


def _quantise(detector: Detector, pixels: np.ndarray, folder: Path) -> None:
    """Write the graph in 8-bit integers into `folder`, calibrated on pixels (N, …) uint8."""
    try:
        import nncf  # which imports torch
    except ImportError:
        raise UserError("Finding the precision needs one package more: pip install nncf.") from None

    def feed(picture: np.ndarray) -> np.ndarray:
        scaled = detector.architecture.scaling(picture[None])
        nchw = detector.architecture.layout == "NCHW"
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)) if nchw else scaled

    transformer = detector.architecture.name.startswith("vit")
    quantised = nncf.quantize(
        openvino_core().read_model(detector.graph),
        nncf.Dataset(list(pixels), feed),
        subset_size=len(pixels),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        # Processors without VNNI would overflow, and results depend on the machine.
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE
        ),
    )
    ov.save_model(quantised, folder / INT8_GRAPH[0], compress_to_fp16=False)


def pictures_to_check(detector: Detector, samples: list[Sample], number: int) -> np.ndarray:
    """Up to `number` of the pictures, spread over them, whole and as the network is fed: (N, size,
    size, 3) uint8, without the unreadable ones.

    Training has left those out as well, and named them.
    """

    def read(sample: Sample) -> np.ndarray | None:
        with contextlib.suppress(ImageError):
            picture = read_image(sample.path)
            return resize(picture, detector.architecture.input_size, detector.resize_filter)

    size = detector.architecture.input_size
    with ThreadPoolExecutor(usable_cores()) as pool:
        pictures = [
            picture for picture in pool.map(read, _spread(samples, number)) if picture is not None
        ]
    return np.array(pictures, np.uint8).reshape(-1, size, size, 3)


def _spread(samples: list[Sample], number: int) -> list[Sample]:
    """`number` of the samples, or all if they are fewer, at equal distances."""
    chosen = np.linspace(0, len(samples) - 1, min(number, len(samples)))
    return [samples[round(index)] for index in chosen]


def _table(section: dict) -> str:
    lines = [f"{'':6} {'ms a face':>10} {'largest difference':>20} {'changed verdicts':>18}"]
    for name, found in section["tried"].items():
        if not found.get("available", True):
            lines.append(f"{name:6} this processor has no {name}")
            continue
        line = f"{name:6} {found['cpu_ms_per_face']:10.2f}"
        if "largest_difference" in found:
            line += f" {found['largest_difference']:20.4f} {found['changed_verdicts']:18.2%}"
        lines.append(line)
    return "\n".join([*lines, f"Scoring will use {' or else '.join(section['order'])}."])


if __name__ == "__main__":
    sys.exit(run(main))
