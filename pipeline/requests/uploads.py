"""What a visitor sends, read into memory within limits: nothing of it ever touches the disk."""

import asyncio
import contextlib
import unicodedata
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from pipeline.requests.settings import Settings

MB = 1_000_000
MAX_FIELDS = 32  # besides the photos: model, explain, …
MAX_FIELD_BYTES = 200
GONE = 499  # the status of an answer that nobody reads: the visitor has left
LONGEST_NAME = 120  # characters of a file name that are shown
_YES = ("1", "true", "on", "yes")
_NO = ("", "0", "false", "off", "no")


class Refusal(Exception):
    """A request that is not served: its status, a sentence, and seconds to wait where this helps.

    The sentence says what is wrong and what to do.
    """

    def __init__(self, status: int, sentence: str, retry_after: int | None = None):
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.retry_after = retry_after


class Upload(NamedTuple):
    """A photo as it was sent. `name` is for display only."""

    name: str
    content: bytes


class Form(NamedTuple):
    """A form: its photos, and its other fields as name → values in their order."""

    uploads: list[Upload]
    fields: dict[str, list[str]]

    def flag(self, name: str) -> bool:
        """Whether a box is ticked. Raises Refusal (422) for what says neither yes nor no."""
        text = self.fields.get(name, [""])[-1].strip().lower()
        if text not in (*_YES, *_NO):
            raise Refusal(422, f"{name} must be true or false.")
        return text in _YES

    def number(
        self, name: str, kind: type, default: float, least: float, most: float
    ) -> int | float:
        """A number of this kind, int or float. Raises Refusal (422) where it is out of range."""
        text = self.fields.get(name, [""])[-1].strip()
        try:
            value = kind(text) if text else kind(default)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            whole = "a whole number" if kind is int else "a number"
            raise Refusal(422, f"{name} must be {whole} from {least} to {most}.")
        return value


class Places:
    """How many requests, and how many of their bytes, may be in memory at once.

    For the event loop's thread only.
    """

    def __init__(self, places: int, most_bytes: float):
        self._free = places
        self._free_bytes = most_bytes
        self._places = places

    @property
    def taken(self) -> int:
        return self._places - self._free

    @contextlib.contextmanager
    def take(self) -> Iterator["Place"]:
        """A place for one request, given back at the end of the block.

        Raises Refusal (503) at once where none is free.
        """
        if not self._free:
            raise _busy()
        self._free -= 1
        place = Place(self)
        try:
            yield place
        finally:
            self._free += 1
            self._free_bytes += place.bytes

    def hold(self, number: int) -> None:
        if number > self._free_bytes:
            raise _busy()
        self._free_bytes -= number


class Place:
    """A request's place; `bytes` is what it holds."""

    def __init__(self, places: Places):
        self._places = places
        self.bytes = 0

    def hold(self, number: int) -> None:
        """Count `number` more bytes. Raises Refusal (503) where all requests hold too many."""
        self._places.hold(number)
        self.bytes += number


async def read_form(
    request: Request, settings: Settings, place: Place, known: Mapping[str, bool]
) -> Form:
    """Read a form with photos, and stop as soon as it breaks a limit.

    `known` are its fields: name → whether it may be given more than once. Raises Refusal: 408 too
    slow, 413 too large, 415 not a form, 422 malformed or with a field that is not known, GONE.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Refusal(415, f"Send this as multipart/form-data, with the fields {_listed(known)}.")
    announced = request.headers.get("content-length", "0")
    if not announced.isascii() or not announced.isdigit():
        raise Refusal(400, "The header Content-Length is not a number.")
    if "transfer-encoding" in request.headers and "content-length" in request.headers:
        raise Refusal(400, "Content-Length and Transfer-Encoding contradict each other.")
    if int(announced) > settings.max_body_mb * MB:
        raise _too_large(settings)
    parser = _MemoryParser(request, _limited(request, settings, place), settings)
    try:
        async with asyncio.timeout(settings.body_seconds):
            form = await parser.parse()
    except TimeoutError:
        raise Refusal(
            408, f"The photos did not arrive within {settings.body_seconds:g} seconds."
        ) from None
    except ClientDisconnect:
        raise Refusal(GONE, "The visitor has left.") from None
    except MultiPartException as error:
        raise Refusal(422, f"The form cannot be read: {error.message}") from None
    return _form(form.multi_items(), request.scope["route"].path, known)


def no_such_field(kind: str, name: str, path: str, known: Collection[str]) -> Refusal:
    """The refusal of something that nobody would look at, such as a misspelt field; `kind` says
    what it is."""
    takes = f"the form fields {_listed(known)}" if known else "nothing of the kind"
    return Refusal(422, f"{_printable(name)}: no such {kind}; {path} takes {takes}.")


def display_name(client_name: str | None, number: int) -> str:
    """What to show of a client's file name: its last part, printable, not too long."""
    last = PurePosixPath((client_name or "").replace("\\", "/")).name
    return _printable(last) or f"photo {number}"


def _printable(text: str) -> str:
    printable = "".join(
        character
        for character in text
        if unicodedata.category(character)[0] != "C"  # controls, reversed writing, surrogates
    ).strip()
    if len(printable) > LONGEST_NAME:
        printable = f"{printable[: LONGEST_NAME - 20]}…{printable[-19:]}"
    return printable


def _listed(names: Collection[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


class _MemoryParser(MultiPartParser):
    """Starlette's parser, which would write photos above 1 MB to temporary files."""

    spool_max_size = 0  # keep all in memory; the limits bound it

    def __init__(self, request: Request, stream: AsyncIterator[bytes], settings: Settings):
        super().__init__(
            request.headers,
            stream,
            # An empty picker, and there are two on the page, sends a part without a name.
            max_files=settings.max_files + 4,
            max_fields=MAX_FIELDS,
            max_part_size=MAX_FIELD_BYTES,
        )
        self._most = settings.max_file_mb * MB
        self._max_files = settings.max_files
        self._named = 0
        self._size = 0

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._size = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is not None:
            self._size += end - start
            if self._size > self._most:
                raise Refusal(
                    413,
                    f"A photo has more than {self._most / MB:g} MB; save a smaller copy of it.",
                )
        super().on_part_data(data, start, end)

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if self._current_part.file is not None and self._current_part.file.filename:
            self._named += 1
            if self._named > self._max_files:
                raise Refusal(
                    413,
                    f"There are more than {self._max_files} photos; send fewer at a time.",
                )


async def _limited(request: Request, settings: Settings, place: Place) -> AsyncIterator[bytes]:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > settings.max_body_mb * MB:
            raise _too_large(settings)
        place.hold(len(chunk))
        yield chunk


def _form(items: list[tuple[str, str | UploadFile]], path: str, known: Mapping[str, bool]) -> Form:
    uploads: list[Upload] = []
    fields: dict[str, list[str]] = {}
    for name, value in items:
        if name not in known:
            raise no_such_field("field", name, path, known)
        if isinstance(value, str) and name == "files":
            if value:
                raise Refusal(422, "files is a text here; send the photos themselves as files.")
            continue
        if isinstance(value, str):
            if name in fields and not known[name]:
                raise Refusal(422, f"{name}: give this field once.")
            fields.setdefault(name, []).append(value)
            continue
        if name != "files":
            raise Refusal(422, f"{name} is a file here; photos belong into fields named files.")
        content = value.file.read()
        value.file.close()
        if value.filename or content:  # an empty picker sends a part without either
            uploads.append(Upload(display_name(value.filename, len(uploads) + 1), content))
    return Form(uploads, fields)


def _too_large(settings: Settings) -> Refusal:
    return Refusal(
        413,
        f"The photos have more than {settings.max_body_mb:g} MB together; send fewer at a time.",
    )


def _busy() -> Refusal:
    return Refusal(503, "The service is busy; try again in a few seconds.", retry_after=5)
