"""Write a detector so that others can load it with timm or transformers, without this project.

    python manage_detectors.py for-hub weights/efficientnet_lite0 --output shared/efficientnet_lite0
    python manage_detectors.py for-hub weights/vit --output shared/vit --push-to-hub owner/name

The new folder is still a detector folder, which all scripts here take. Beside that, timm loads an
EfficientNet-Lite0 or a ResNet50 from it, and transformers a ViT-B, S or Ti: config.json says what
the network is and how pictures are fed to it, and model.safetensors has two logits whose softmax
gives fake_probability. No other library has the classes of Keras networks and of vit_clip; of these
model.onnx can be used alone. The model card has the lines to copy. Training with --push-to-hub
uploads the same.
"""

import shutil
import tempfile
from pathlib import Path

from pipeline.common.command_line import script_parser
from pipeline.common.errors import UserError
from pipeline.detectors.detector import Detector, load_detector, write_detector
from pipeline.detectors.detector_values import ONNX, TIMM
from pipeline.evaluation.model_card import write_card_text
from pipeline.foreign import hub

LIBRARY_FILES = ("config.json", "preprocessor_config.json")


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__, "for-hub")
    parser.add_argument("detector", type=Path, help="the detector folder")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the folder to write"
    )
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="then upload it to the Hugging Face hub"
    )
    args = parser.parse_args(arguments)
    if args.push_to_hub:
        hub.require_token()
    library = write_for_hub(args.detector, args.output, args.push_to_hub)
    print(f"{args.output}: can be loaded with {library}; its README.md says how.")
    if args.push_to_hub:
        print(f"Uploaded to {hub.push(args.output, args.push_to_hub)}.")
    return 0


def push_detector(folder: Path, name: str) -> str:
    """Upload a detector folder, as `write_for_hub` writes it, to owner/name on the hub; its
    address. Raises UserError."""
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / folder.name
        write_for_hub(folder, target, name)
        return hub.push(target, name, made_from=folder)


def write_for_hub(folder: Path, target: Path, repository: str | None = None) -> str:
    """Write the detector in `folder` for others into the folder `target`; the library that loads
    it: "timm", "transformers", or "onnx" for the graph alone.

    `repository` is owner/name on the hub, for the model card, where it is known. Raises UserError
    where `folder` holds no detector that was trained here, and where there is something at `target`
    that is not of this function.
    """
    detector = load_detector(folder)
    if "arguments" not in detector.description["training"]:
        raise UserError(
            f"{folder}: its detector.json does not say how it was trained, so it can have no model "
            "card; name a detector that a script here has trained."
        )
    _require_free(target)
    is_torch = detector.architecture.framework == "torch"
    library = _library(detector) if is_torch else ONNX
    description = {key: value for key, value in detector.description.items() if key != "files"}
    temperature = 1.0 if library == ONNX else detector.calibration.temperature
    description["hub"] = {"library": library, "temperature": temperature}
    if repository:
        description["hub"]["repository"] = repository
    with write_detector(target, description) as new:
        for name in detector.description["files"]:
            if name not in LIBRARY_FILES:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(folder / name, new / name)
        if library != ONNX:
            _write_library_files(new, detector, library)
        write_card_text(new, description)
    return library


def _require_free(target: Path) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        if "hub" in load_detector(target).description:
            return
    except UserError:
        pass
    raise UserError(
        f"--output {target}: there is something else already, which would be lost: name a new "
        "folder."
    )


def _library(detector: Detector) -> str:
    from pipeline.foreign.library_formats import library_of

    return library_of(detector.architecture)


def _write_library_files(new: Path, detector: Detector, library: str) -> None:
    import json

    import torch
    from safetensors.torch import save_file

    from pipeline.foreign.library_formats import (
        save_transformers_configs,
        their_weights,
        timm_config,
    )
    from pipeline.torch_engine.weights import WEIGHTS, owned, read_weights

    architecture = detector.architecture
    weights, _ = read_weights(detector.folder, architecture)
    theirs = their_weights(weights, architecture, detector.calibration.temperature)
    # Transformers wants to be told that these tensors are torch's.
    save_file(owned(theirs), new / WEIGHTS, metadata={"format": "pt"})
    with torch.device("meta"):
        network = architecture.build()
    if library == TIMM:
        text = json.dumps(timm_config(network, detector), indent=1) + "\n"
        (new / "config.json").write_text(text, encoding="utf-8")
    else:
        save_transformers_configs(new, network, detector)
