"""Whether the signature of a C2PA manifest holds, by the library c2pa-python where it is installed.

Nothing is asked of the network: neither manifests that are kept elsewhere nor lists of revoked
certificates.
"""

import functools
import json
import threading
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
    "TIFF": "image/tiff",
}
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
_HOLDS = ("Valid", "Trusted")
_one_at_a_time = threading.Lock()


def read_verified(file: BinaryIO, kind: str) -> tuple[dict, bool] | None:
    """The manifest store of a picture, as the library reads it, and whether its signature fits the
    picture and the store. None where the library is missing or finds nothing that it can read.

    It does not say that the signer is who the certificate names: no list of trusted certificates
    comes with the library.
    """
    library = _library()
    if library is None:
        return None
    file.seek(0)
    content = BytesIO(file.read())
    try:
        with (
            _one_at_a_time,
            library.Context.from_dict(_OFFLINE) as context,
            library.Reader(_TYPES[kind], content, context=context) as reader,
        ):
            store = json.loads(reader.json())
    except (library.Error, ValueError, RecursionError):
        return None
    return store, store.get("validation_state") in _HOLDS


class _Library(NamedTuple):
    """What is used of c2pa-python."""

    Context: Any
    Reader: Any
    Error: type[Exception]


@functools.cache
def _library() -> _Library | None:
    """c2pa-python, if it is there; loaded with the first manifest, for it takes 23 MB."""
    try:
        from c2pa import C2paError, Context, Reader
    except (ImportError, OSError, RuntimeError):  # its binary may not fit this machine
        return None
    return _Library(Context, Reader, C2paError)
