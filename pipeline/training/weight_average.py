"""Average the weights of detectors of which each was trained further from the one before.

    python manage_detectors.py average weights/first weights/second --shares 1 3 --data dataset/ \\
        --output weights/both

After Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022: where a network was
trained further, on harder pictures say, the average of its weights before and after is often better
than either, at the cost of one. That holds only while the two are close enough, so look at what is
printed: the validation AUC of each, and of the average. The result is calibrated on validate/ of
--data and written as a detector folder of its own, with the training of the last one noted in it.
"""

from pathlib import Path

from pipeline.common.command_line import positive_float, script_parser
from pipeline.common.errors import UserError
from pipeline.data.dataset import load_dataset
from pipeline.detectors.calibration import DEFAULT_RULE, RULES
from pipeline.detectors.detector import Detector, load_detector


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__, "average")
    parser.add_argument("detectors", nargs="+", type=Path, help="detector folders, at least two")
    parser.add_argument(
        "--shares", nargs="+", type=positive_float, help="how much each counts (default: equally)"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("dataset"), metavar="DIR|CSV", help="as for training"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--threshold-rule", default=DEFAULT_RULE, metavar="RULE", help=RULES)
    args = parser.parse_args(arguments)
    shares = args.shares or [1.0] * len(args.detectors)
    if len(shares) != len(args.detectors) or len(shares) < 2:
        parser.error("name at least two detectors, and as many --shares")
    detectors = [load_detector(folder) for folder in args.detectors]
    require_one_kind(detectors)
    aucs = average(detectors, shares, args.data, args.threshold_rule, args.output)
    for name, value in zip([*map(str, args.detectors), str(args.output)], aucs, strict=True):
        print(f"{name}: validation AUC {value:.3f}")
    return 0


def require_one_kind(detectors: list[Detector]) -> None:
    """Raises UserError where the detectors' weights cannot be averaged."""
    first = detectors[0]
    for other in detectors:
        if other.architecture.framework != "torch":
            raise UserError(f"{other.folder}: only torch networks' weights are averaged.")
        seen = (other.architecture, other.resize_filter, other.margin, _fingerprint(other))
        if seen != (first.architecture, first.resize_filter, first.margin, _fingerprint(first)):
            raise UserError(
                f"{other.folder} and {first.folder} differ in architecture, input or training "
                "data: only what was trained on from one another can be averaged."
            )


def average(
    detectors: list[Detector], shares: list[float], data: Path, rule: str, output: Path
) -> list[float]:
    """Write the detector folder `output`, the average of those given, weighted by `shares` (above
    0, of any sum); the validation AUC of each and, last, of the average. Raises UserError."""
    from pipeline.data.audit import audited_dataset
    from pipeline.torch_engine.export import finished
    from pipeline.training.finishing import DetectorSpec, finish_training
    from pipeline.training.incremental import measure

    dataset, _ = audited_dataset(load_dataset(data))
    last = detectors[-1]
    network = last.architecture.build()
    network.load_state_dict(averaged(detectors, shares))
    notes = [
        {"name": detector.name, "share": share / sum(shares), "date": _training(detector)["date"]}
        for detector, share in zip(detectors, shares, strict=True)
    ]
    before = [measure(detector, dataset.validate)["auc"] for detector in detectors]
    spec = DetectorSpec(
        name=output.name,
        architecture=last.architecture,
        resize_filter=last.resize_filter,
        margin=last.margin,
        training={**_training(last), "averaged": notes},
        history=last.folder / "history.jsonl",
    )
    trained = finished(network, last.architecture)
    description = finish_training(trained, spec, dataset.validate, rule, output)
    return [*before, description["metrics"]["auc"]]


def averaged(detectors: list[Detector], shares: list[float]) -> dict:
    """The weights under timm's names: floats averaged, counters those of the last detector."""
    from pipeline.torch_engine.weights import read_weights

    states = [read_weights(each.folder, each.architecture)[0] for each in detectors]
    weights = {}
    for name, value in states[-1].items():
        if value.is_floating_point():
            parts = zip(states, shares, strict=True)
            total = sum(state[name].double() * share for state, share in parts)
            value = (total / sum(shares)).to(value.dtype)
        weights[name] = value
    return weights


def _training(detector: Detector) -> dict:
    return detector.description["training"]


def _fingerprint(detector: Detector) -> str | None:
    return _training(detector).get("fingerprint")
