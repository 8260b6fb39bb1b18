"""What a file says of its own origin: generated, edited, or from a camera, and where it says so.

Anybody can write such notes or remove them. So they are shown beside a verdict and never change it,
and that there are none proves nothing.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pipeline.origin import exif, jumbf, manifests, verification, xmp
from pipeline.origin.generators import generator_of_text
from pipeline.origin.notes import Notes, read_notes
from pipeline.origin.source_types import GENERATED, RANKS, source_type

log = logging.getLogger(__name__)

VERIFIED = "verified, signer not checked"
NOT_VERIFIED = "not verified"
BROKEN = "not verified: the signature does not hold"


class Declaration(NamedTuple):
    """`origin` is "generated", "edited" or "camera"; None where the file says none of these.

    `by` names the field that decides, what it says, and whether a signature was verified. Without
    an origin it names a C2PA manifest, if there is one.
    """

    origin: str | None = None
    by: str | None = None


NOTHING = Declaration()


def declared_origin(file: BinaryIO, kind: str) -> Declaration:
    """What a picture file says of its origin. `kind` is as `image_kinds.picture_format` names it.

    The file has been decoded before, and is left open. Only the places are read that the standards
    name for it (notes.py). Of several statements generated comes before edited before camera, and
    among equals C2PA, XMP, PNG text, EXIF. Raises nothing: notes that are damaged are passed over.
    """
    notes = Notes()
    with _passed_over(file):
        notes = read_notes(file, kind)
    said: list[Declaration] = []
    for source in (_of_manifest, _of_xmp, _of_texts, _of_exif):
        with _passed_over(file):
            said += source(notes, file, kind)
    return min(said, key=_rank, default=NOTHING)


def _rank(declaration: Declaration) -> int:
    return len(RANKS) if declaration.origin is None else RANKS.index(declaration.origin)


@contextlib.contextmanager
def _passed_over(file: BinaryIO) -> Iterator[None]:
    """No damage to one note keeps a photo from being scored, nor hides what another says."""
    try:
        yield
    except ValueError:
        pass
    except Exception as error:  # not foreseen, yet no reason to give up the photo
        name = getattr(file, "name", "a photo")
        log.warning("%s: a note of its origin cannot be read: %r", name, error)


def _of_manifest(notes: Notes, file: BinaryIO, kind: str) -> list[Declaration]:
    if not jumbf.is_store(notes.manifest):
        return []
    if verified := verification.read_verified(file, kind):
        store, holds = verified
        return [_declaration(*manifests.statement(store), VERIFIED if holds else BROKEN)]
    try:
        store = jumbf.manifest_store(notes.manifest)
    except ValueError:
        return [_declaration(None, "C2PA manifest that cannot be read")]
    return [_declaration(*manifests.statement(store))]


def _of_xmp(notes: Notes, _file: BinaryIO, _kind: str) -> list[Declaration]:
    values = xmp.digital_source_types(notes.xmp) if notes.xmp else []
    return [
        _declaration(said[0], f"XMP DigitalSourceType: {said[1]}")
        for said in map(source_type, values)
        if said
    ]


def _of_texts(notes: Notes, _file: BinaryIO, _kind: str) -> list[Declaration]:
    return [
        _declaration(GENERATED, f"PNG text {keyword}: {name}")
        for keyword, text in notes.texts
        if (name := generator_of_text(keyword, text))
    ]


def _of_exif(notes: Notes, _file: BinaryIO, _kind: str) -> list[Declaration]:
    statements = exif.statements(notes.exif) if notes.exif else []
    return [_declaration(origin, by) for origin, by in statements]


def _declaration(origin: str | None, by: str, verified: str = NOT_VERIFIED) -> Declaration:
    return Declaration(origin, f"{by}; {verified}")
