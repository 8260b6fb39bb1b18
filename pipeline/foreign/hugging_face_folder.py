"""What a folder of transformers' or timm's says of the classifier in it: size, scaling, classes.

Read from its JSON files and the first bytes of its weights, so that no framework is needed to find
out what the weights are, and that they have been imported already.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

from models import ARCHITECTURES, Architecture, PixelScaling
from pipeline.common.errors import UserError
from pipeline.detectors.fake_class import unnamed

_WIDTHS = {768: "vit", 384: "vit_small_patch16_224", 192: "vit_tiny_patch16_224"}
# timm's names of our networks; others, whose layers may have the same names, compute other things.
_TIMM = {
    "tf_efficientnet_lite0": "efficientnet_lite0",
    "resnet50": "resnet50",
    "vit_base_patch16_224": "vit",
    "vit_small_patch16_224": "vit_small_patch16_224",
    "vit_tiny_patch16_224": "vit_tiny_patch16_224",
}
_TIMM_ARGUMENTS = {"num_classes", "in_chans", "global_pool", "drop_rate"}  # that may be stored
_HEADS = ("classifier.weight", "head.weight", "fc.weight")
_LONGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it


def weights_file(folder: Path) -> Path:
    """Its weights, or those of its adapter. Raises UserError where there is no such file."""
    adapter = (folder / "adapter_config.json").exists()
    file = folder / ("adapter_model.safetensors" if adapter else "model.safetensors")
    if not file.exists():
        raise UserError(
            f"{folder}: {file.name} is missing; weights in pickles (.bin, .pth) are not opened: "
            "save them again with safe_serialization=True."
        )
    return file


def files_of(folder: Path) -> tuple[Path, ...]:
    """All files that the imported network depends on."""
    names = ("model.safetensors", "config.json", "preprocessor_config.json")
    own = ("adapter_config.json", "adapter_model.safetensors", *names)
    base = _local_base(folder)
    found = [folder / name for name in own] + [base / name for name in names if base]
    return tuple(path for path in found if path.is_file())


def architecture_of(folder: Path) -> Architecture:
    """Which network it is, with its pixel scaling: timm's by its name, transformers' ViT by its
    width (an adapter's by that of its base). Raises UserError for one that is not known."""
    if is_timm(folder):
        return _timm_architecture(folder)
    return replace(_size(folder), scaling=_scaling(folder))


def is_timm(folder: Path) -> bool:
    """Whether its config.json is one of timm's: these name their `architecture`."""
    return "architecture" in _json(folder / "config.json")


def labels_of(folder: Path) -> tuple[str, ...]:
    """The names of its classes, in the order of the outputs; LABEL_0, LABEL_1, … where it has none.

    Raises UserError where there is no head, or where the file of names contradicts itself.
    """
    count = _class_count(weights_file(folder), folder)
    base = _local_base(folder)
    for config in [folder / "config.json"] + ([base / "config.json"] if base else []):
        labels = labels_in(config)
        if labels and len(labels) == count:
            return labels
    return unnamed(count)


def labels_in(config: Path) -> tuple[str, ...] | None:
    """The names of the classes that a config.json has, or None. Raises UserError where it
    contradicts itself."""
    stored = _json(config)
    if isinstance(stored.get("label_names"), list):  # timm's
        return tuple(map(str, stored["label_names"])) or None
    names = _by_number(stored.get("id2label"))
    label2id = stored.get("label2id")
    numbers = label2id if isinstance(label2id, dict) else {}
    reversed_names = _by_number({number: name for name, number in numbers.items()})
    if names is None or (names == unnamed(len(names)) and reversed_names):
        return reversed_names
    for number, name in enumerate(names):
        if str(numbers.get(name, number)) != str(number):
            raise UserError(
                f"{config}: id2label and label2id contradict each other ({name!r} is {number} in "
                f"one and {numbers[name]} in the other): mend the one that is wrong."
            )
    return names


def has_separate_classes(folder: Path) -> bool:
    """Whether each output is a probability of its own rather than one of a softmax."""
    return _json(folder / "config.json").get("problem_type") == "multi_label_classification"


def _local_base(folder: Path) -> Path | None:
    """The folder of the network that an adapter belongs to, where it is on this machine."""
    base = _json(folder / "adapter_config.json").get("base_model_name_or_path")
    return Path(base) if isinstance(base, str) and Path(base).is_dir() else None


def _by_number(names: object) -> tuple[str, ...] | None:
    """From {"0": name, "1": name}, whose keys may be numbers, too."""
    if not isinstance(names, dict) or not names:
        return None
    by_number = {str(number): str(name) for number, name in names.items()}
    try:
        return tuple(by_number[str(number)] for number in range(len(by_number)))
    except KeyError:
        return None


def _class_count(file: Path, folder: Path) -> int:
    """From the header of a safetensors file: the length of a JSON text (8 bytes, the lowest first)
    and the text, which has the shape of each tensor."""
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= _LONGEST_HEADER:
                raise ValueError("it has no header of a safetensors file")
            tensors = json.loads(stream.read(length))
        heads = [
            tensor["shape"][0]
            for name, tensor in tensors.items()
            if name.rpartition("base_model.model.")[2] in _HEADS
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{file}: these weights cannot be read ({error}); copy or download them again."
        ) from None
    if heads:
        return int(heads[0])
    if file.name == "adapter_model.safetensors":
        raise UserError(
            f"{folder}: this adapter has no classifier, so its verdicts would be those of an "
            "untrained head."
        )
    raise UserError(f"{folder}: this is no ViT classifier (it has no classifier.weight).")


def _timm_architecture(folder: Path) -> Architecture:
    path = folder / "config.json"
    stored = _json(path)
    name = str(stored["architecture"]).partition(".")[0]  # without the name of its weights
    if name not in _TIMM:
        raise UserError(
            f"{folder}: timm's {name} cannot be imported; of timm's, {', '.join(_TIMM)} can."
        )
    architecture = ARCHITECTURES[_TIMM[name]]
    pool = "token" if name.startswith("vit") else "avg"
    arguments = stored.get("model_args") or {}
    try:
        changed = sorted(set(arguments) - _TIMM_ARGUMENTS)
        pools = {str(each.get("global_pool", pool)) for each in (stored, arguments)}
        if changed or pools != {pool}:
            raise ValueError(f"{changed[0] if changed else 'global_pool'} is not the usual one")
        fed = stored.get("pretrained_cfg", stored)
        channels, height, width = fed["input_size"]
        mean, std = (tuple(float(value) * 255 for value in fed[name]) for name in ("mean", "std"))
        if (channels, height) != (3, width) or type(height) is not int or height < 1:
            raise ValueError(f"input_size is {fed['input_size']}, not 3 and twice the same")
        return replace(architecture, input_size=height, scaling=_three(mean, std))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: it does not say what is fed to a usual {name} ({error})."
        ) from None


def _size(folder: Path) -> Architecture:
    if (folder / "adapter_config.json").exists():
        base = _local_base(folder)
        if base is None:  # on the hub: ViT-B, or the import will say so
            return ARCHITECTURES["vit"]
        folder = base
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return ARCHITECTURES[_WIDTHS[stored["hidden_size"]]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: this is no ViT classifier that is known ({error}).") from None


def _scaling(folder: Path) -> PixelScaling:
    """What preprocessor_config.json says; where it is missing, ViT's own mean and deviation.

    There, pixels are multiplied by rescale_factor (1/255), then normalized, if both are done.
    """
    path = folder / "preprocessor_config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        factor = float(stored.get("rescale_factor", 1 / 255)) if stored.get("do_rescale", 1) else 1
        mean, std = (0, 0, 0), (1, 1, 1)
        if stored.get("do_normalize", True):
            mean, std = stored["image_mean"], stored["image_std"]
        in_pixels = [tuple(float(value) / factor for value in values) for values in (mean, std)]
        return _three(*in_pixels)
    except FileNotFoundError:
        return ARCHITECTURES["vit"].scaling
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{path} does not say how to scale pixels ({error}).") from None


def _three(mean: tuple[float, ...], std: tuple[float, ...]) -> PixelScaling:
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean)) or min(std) <= 0:
        raise ValueError("three means and deviations are wanted, these above 0")
    return PixelScaling(mean, std)


def _json(path: Path) -> dict:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}
