"""The Hugging Face hub, both ways: weights from it, detector folders to it."""

from pathlib import Path

from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from pipeline.common.errors import UserError
from pipeline.detectors.detector import GRAPH, INT8_GRAPH, NUMBERS

HUB = "hf-hub:"
_TIMEOUT_SECONDS = 20
# What a detector or a classifier may consist of; never a pickle.
_WANTED = ["*.json", "*.jsonl", "*.safetensors", "*.onnx", "*.weights.h5", "*.md", "*.png"]
_WANTED += [NUMBERS, *INT8_GRAPH]
# What an earlier upload may have left there and this one may lack: config.json beside weights that
# are no longer its own would be loaded without a word.
_REPLACED = ["config.json", "preprocessor_config.json", "model.safetensors", "model.weights.h5"]
_REPLACED += [GRAPH, NUMBERS, *INT8_GRAPH, "adapter/*"]


def download(name: str, option: str) -> Path:
    """The folder of owner/name on the hub, downloaded once; without what could be a pickle.

    `option` is where the user named it. Raises UserError, with the address and the ways on, where
    it cannot be had.
    """
    address = f"https://huggingface.co/{name}"
    try:
        reachable = _is_reachable(name)
        return Path(snapshot_download(name, allow_patterns=_WANTED, local_files_only=not reachable))
    except RepositoryNotFoundError:
        raise UserError(f"{option}: {address} is not there, or not for everybody.") from None
    except HFValidationError:
        raise UserError(f"{option}: {name} is no name of the hub's form owner/name.") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        ways = (
            "name them with --init FILE, or start from scratch with --init none"
            if option.startswith("--init")
            else f"name their folder with {option} DIR"
        )
        raise UserError(
            f"{option}: {address} cannot be fetched from here ({type(error).__name__}); fetch its "
            f"files elsewhere and {ways}."
        ) from None


def require_token() -> None:
    """Raise UserError where nobody is logged in to the hub: better before a training than after."""
    if get_token() is None:
        raise UserError(
            "--push-to-hub: nobody is logged in to the Hugging Face hub here; run `hf auth login`, "
            "or set HF_TOKEN to a token that may write."
        )


def push(folder: Path, name: str, made_from: Path | None = None) -> str:
    """Upload a detector folder with its model card to owner/name, which is made where it is not
    there yet; its address. Network files of an earlier upload that it does not replace go.

    `made_from` is the detector folder that it was made of, if it is another. Raises UserError
    where the hub refuses or is out of reach.
    """
    api = HfApi()
    try:
        address = api.create_repo(name, exist_ok=True).url
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Add the detector",
            delete_patterns=_REPLACED,
        )
    except HFValidationError:
        raise UserError(f"--push-to-hub: {name} is no name of the form owner/name.") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--push-to-hub: {made_from or folder} could not be uploaded to {name} "
            f"({reason}); it is whole here, so nothing has to be trained again."
        ) from None
    return address


def _is_reachable(name: str) -> bool:
    """Whether the hub answers in time; where it is silent, snapshot_download would wait for ever.

    Raises RepositoryNotFoundError and HFValidationError.
    """
    try:
        HfApi().model_info(name, timeout=_TIMEOUT_SECONDS)
    except (RepositoryNotFoundError, HFValidationError):
        raise
    except Exception:  # of an HTTP library that is another one in other versions of the hub's
        return False
    return True
