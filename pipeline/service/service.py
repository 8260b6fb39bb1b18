"""The web service behind its routes: photos of a form in, rows and pictures out."""

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from starlette.requests import Request

from pipeline.common.errors import ImageError, UserError
from pipeline.common.program import this_program
from pipeline.photos.images import PHOTO_SUFFIXES, read_picture
from pipeline.photos.photo import Photo, Picture
from pipeline.requests.addresses import is_local
from pipeline.requests.metrics import Metrics
from pipeline.requests.settings import SAMPLES, Settings
from pipeline.requests.uploads import GONE, Form, Places, Refusal, Upload
from pipeline.rows.rows import COMPARED_FIELDS, FIELDS, Row
from pipeline.scoring.scoring import Scored, Scorer
from pipeline.service import pictures, records
from pipeline.service.heat_maps import NO_EXPLAINER, Explained, HeatMaps, can_explain
from pipeline.service.installed import (
    NO_DETECTOR,
    Installed,
    LoadedScorers,
    find_installed,
    find_left_out,
    why_alone,
)
from pipeline.service.work_queue import WorkQueue

BATCH = 32  # photos that are scored together
MOST_FACES = 10_000  # in a photo
log = logging.getLogger("uvicorn.error")
Result = TypeVar("Result")

NO_GENERATOR = (
    "No generator is installed. Download a StyleGAN3 network for faces from NVIDIA (under its "
    "licence, for non-commercial use), convert it with python convert_stylegan3.py FILE.pkl "
    "and try again."
)


class Shown(NamedTuple):
    """A photo that has been scored, with what the page shows of it.

    `width` and `height` are those of the upright photo, 0 where it could not be read; `preview` is
    a data URI, or None; `seen` and `heat_maps` are data URIs, or None, of each row.
    """

    name: str
    width: int
    height: int
    preview: str | None
    rows: list[Row]
    seen: list[str | None]
    heat_maps: list[str | None]


class Choice(NamedTuple):
    """How photos are to be looked at: by which detectors, whether with heat maps, and whether with
    `stability`, which tries if the verdicts hold."""

    detectors: tuple[Installed, ...]
    explain: bool
    stability: bool

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns of the rows, as of the scoring commands."""
        return COMPARED_FIELDS if len(self.detectors) > 1 else FIELDS


class Answer(NamedTuple):
    """What a request has brought; `notes` are sentences on what could not be done."""

    choice: Choice
    photos: list[Shown]
    notes: list[str]

    def rows(self) -> list[dict]:
        return [row.as_dict(self.choice.fields) for photo in self.photos for row in photo.rows]

    def as_json(self) -> dict:
        """What /api/score answers; pictures only where they were asked for."""
        photos = []
        first = 0
        for photo in self.photos:
            described: dict[str, Any] = {
                "name": photo.name,
                "width": photo.width,
                "height": photo.height,
                "row_numbers": list(range(first, first + len(photo.rows))),
            }
            if photo.preview:
                described["preview"] = photo.preview
            if any(photo.heat_maps):
                described["seen"] = photo.seen
                described["heat_maps"] = photo.heat_maps
            photos.append(described)
            first += len(photo.rows)
        models = [detector.name for detector in self.choice.detectors]
        return {"models": models, "rows": self.rows(), "photos": photos, "notes": self.notes}


class Service:
    """All that requests share; for the event loop's thread, which it never holds up."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.places = Places(settings.places, settings.max_waiting_mb * 1e6)
        self.metrics = Metrics(lambda: self.places.taken)
        self._weights = Path(settings.weights)
        self._scorers = LoadedScorers(settings.models_kept)
        self._scoring = WorkQueue(self._score_photos, most=BATCH, name="scoring")
        # Heat maps and generated faces take seconds: they must not hold up plain scoring.
        self._slow = WorkQueue(lambda _key, tasks: (task() for task in tasks), most=1, name="slow")
        self._heat_maps = HeatMaps()
        for folder in find_left_out(self._weights):
            log.warning("%s does not say how well it does, so it is not offered", folder)
        if alone := self.why_alone():
            log.warning("%s", alone)
        self._generator: Any = None
        this_program()  # for records, which name the code that was started

    def close(self) -> None:
        self._scoring.close()
        self._slow.close()

    def installed(self) -> list[Installed]:
        return find_installed(self._weights)

    def why_alone(self) -> str:
        """A sentence where the recommended detector should score with another one and cannot."""
        return why_alone(self._weights)

    def samples(self) -> list[str]:
        """The names of the sample photos."""
        return sorted(
            path.name for path in SAMPLES.glob("*.*") if path.suffix.lower() in PHOTO_SUFFIXES
        )

    def choose(self, form: Form) -> Choice:
        """What a form asks for. Raises Refusal: 422 for what cannot be, 503 without detectors."""
        detectors = self._choose(form.fields.get("model", []))
        return Choice(detectors, form.flag("explain"), form.flag("stability"))

    def _choose(self, asked: Sequence[str]) -> tuple[Installed, ...]:
        """The detectors of these names, all for "all", or the recommended if there are none."""
        installed = self.installed()
        if not installed:
            raise Refusal(503, NO_DETECTOR)
        asked = [name for name in asked if name]
        if not asked:
            return (installed[0],)
        if "all" in asked:
            return tuple(installed)
        names = [detector.name for detector in installed]
        if not set(asked) <= set(names):
            raise Refusal(422, f"There is no such model; choose of {', '.join(names)}, or all.")
        return tuple(detector for detector in installed if detector.name in asked)

    async def score_form(self, form: Form, with_preview: bool) -> Answer:
        """Score a form's photos, and the sample photos that it names, with the models it names."""
        photos = [self._asked(upload) for upload in self._uploads(form)]
        return await self.score(photos, self.choose(form), with_preview)

    async def record_form(self, form: Form) -> bytes:
        """Score a form's photos as `score_form` does: a ZIP archive with their report and record.

        Raises Refusal (422) where two of them have the same name, or heat maps cannot be had.
        """
        uploads, choice = self._uploads(form), self.choose(form)
        names = [upload.name for upload in uploads]
        for name in names:
            if names.count(name) > 1:
                raise Refusal(422, f"Two photos are called {name}; give each a name of its own.")
        if choice.explain and not can_explain():
            raise Refusal(422, NO_EXPLAINER)
        async with self._in_time() as given_up:
            looks = [_Look(self._asked(upload), False, given_up) for upload in uploads]
            looked = await self._look(looks, choice)
            drawn = [{} for _ in uploads]
            if choice.explain:
                draw = partial(self._heat_maps.beside, choice.detectors, looked.photos)
                drawn = await self._slow.run(object(), draw)
            # Each is decoded again, since the pictures of all would take too much memory.
            photos = (
                records.photo_of(upload.content, one.rows, partial(self._decode, upload), heat_maps)
                for upload, one, heat_maps in zip(uploads, looked.photos, drawn, strict=True)
            )
            return await self._slow.run(
                object(),
                lambda: records.archive(looked.scorer, choice.stability, choice.fields, photos),
            )

    def takes_reports(self, request: Request) -> bool:
        """Whether this visitor may report that a verdict is wrong."""
        return bool(self.settings.reports) and is_local(request.scope)

    async def report_form(self, form: Form) -> Path:
        """Keep the face of a form's photo whose verdict is not the form's `truth`; where it is now.

        Raises Refusal (422) where there is nothing to report.
        """
        uploads, choice = self._uploads(form), self.choose(form)
        if len(uploads) > 1:
            raise Refusal(422, "A report is about one photo; send that alone.")
        [upload] = uploads
        face = form.number("face", int, 0, 0, MOST_FACES)
        truth = form.fields.get("truth", [""])[-1]
        async with self._in_time() as given_up:
            looked = await self._look([_Look(self._asked(upload), False, given_up)], choice)
            rows = [row.as_dict(choice.fields) for row in looked.photos[0].rows]
            folder = Path(self.settings.reports)
            return await self._slow.run(
                object(),
                lambda: records.keep_wrong(rows, upload, face, truth, choice.detectors, folder),
            )

    async def score(self, photos: list["_Asked"], choice: Choice, with_preview: bool) -> Answer:
        """Score photos; raises Refusal (503) where that takes longer than the settings allow."""
        detectors = choice.detectors
        alone = detectors[0].recommended and self.why_alone()
        notes = [alone] if alone else []
        async with self._in_time() as given_up:
            looks = [_Look(photo, with_preview, given_up) for photo in photos]
            scored = (await self._look(looks, choice)).photos
            explained = [Explained.nothing(one) for one in scored]
            if choice.explain and can_explain():
                explained, missing = await self._slow.run(
                    object(), lambda: self._heat_maps.draw(detectors, scored)
                )
                notes += missing
            elif choice.explain:
                notes.append(NO_EXPLAINER)
        return Answer(
            choice,
            [
                Shown(
                    look.photo.name, look.width, look.height, look.preview, one.rows, *pictures_of
                )
                for look, one, pictures_of in zip(looks, scored, explained, strict=True)
            ],
            notes,
        )

    async def _look(self, looks: list["_Look"], choice: Choice) -> "_Looked":
        looked = await self._scoring.run(
            (choice.detectors, choice.stability), looks, size=len(looks)
        )
        self.metrics.scored([row for one in looked.photos for row in one.rows])
        return looked

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[threading.Event]:
        """For work on photos, with the event that says that nobody waits for it any more.

        Raises Refusal (503) where it takes longer than the settings allow, or cannot be done.
        """
        given_up = threading.Event()
        try:
            async with asyncio.timeout(self.settings.answer_seconds):
                yield given_up
        except TimeoutError:
            raise Refusal(
                503, "This took too long; send fewer or smaller photos, or try later.", 10
            ) from None
        except UserError as error:  # a damaged detector folder; the sentence names its path
            log.error("%s", error)
            raise Refusal(
                503, "This detector cannot be loaded; choose another, or tell the keeper."
            ) from None
        finally:
            given_up.set()

    async def generate_form(self, form: Form, with_preview: bool) -> Answer:
        """Generate a face by a form's seed and truncation, and score it.

        Raises Refusal: 422 for values out of range, 501 where there is no generator.
        """
        seed = form.number("seed", int, 0, 0, 2**32 - 1)
        truncation = form.number("truncation", float, 0.7, 0, 1)
        choice = self.choose(form)
        image = await self._slow.run(object(), lambda: self._generate(seed, truncation))
        name = f"generated face, seed {seed}, truncation {truncation:g}"
        return await self.score([_Asked(name, lambda: Picture(image))], choice, with_preview)

    def _score_photos(
        self, key: tuple[tuple[Installed, ...], bool], requests: list[list["_Look"]]
    ) -> Iterator["_Looked"]:
        """The scored photos of each request; all ask for these detectors, and for stability or
        not. Runs in the queue's thread."""
        detectors, stability = key
        started = time.perf_counter()
        scorer = self._scorers.get(detectors)
        photos = (Photo(look.photo.name, read=look.read) for looks in requests for look in looks)
        scored = scorer.look(photos, stability)
        for looks in requests:
            yield _Looked(scorer, list(itertools.islice(scored, len(looks))))
        looked_at = sum(look.begun for looks in requests for look in looks)
        self.metrics.batch(looked_at, time.perf_counter() - started)

    def _asked(self, upload: Upload) -> "_Asked":
        return _Asked(upload.name, partial(self._decode, upload))

    def _decode(self, upload: Upload) -> Picture:
        return read_picture(BytesIO(upload.content), int(self.settings.max_megapixels * 1e6))

    def _uploads(self, form: Form) -> list[Upload]:
        """A form's photos, and the sample that it names. Raises Refusal (422) without any."""
        uploads = form.uploads + self._sample_uploads(form.fields.get("sample", []))
        if not uploads:
            raise Refusal(422, "There is no photo in the request; choose at least one.")
        return uploads

    def _sample_uploads(self, names: list[str]) -> list[Upload]:
        names = [name for name in names if name]
        if not set(names) <= set(self.samples()):
            raise Refusal(422, f"There is no such sample; choose of {', '.join(self.samples())}.")
        return [Upload(name, (SAMPLES / name).read_bytes()) for name in names[:1]]

    def _generate(self, seed: int, truncation: float) -> np.ndarray:
        try:
            from pipeline.service import generation

            if self._generator is None:
                self._generator = generation.load_generator(Path(self.settings.generator))
        except (ImportError, UserError) as error:
            log.warning("no face can be generated: %s", error)
            raise Refusal(501, NO_GENERATOR) from None
        return generation.generate(self._generator, seed, truncation)


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Wait for the work of a request whose body has been read, and stop it when its sender leaves.

    Raises Refusal then, which nobody reads.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refusal(GONE, "The visitor has left.")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Looked(NamedTuple):
    """The photos of a request that have been scored, and what has scored them."""

    scorer: Scorer
    photos: list[Scored]


class _Asked(NamedTuple):
    """A photo to score: its name, and what decodes it."""

    name: str
    decode: Callable[[], Picture]


class _Look:
    """Decodes a photo when its turn comes, and keeps what the page will show of it."""

    def __init__(self, photo: _Asked, with_preview: bool, given_up: threading.Event):
        self.photo = photo
        self.begun = False  # never, where the request was given up before
        self.width = self.height = 0
        self.preview: str | None = None
        self._with_preview = with_preview
        self._given_up = given_up

    def read(self) -> Picture:
        if self._given_up.is_set():
            raise ImageError("the request was given up")
        self.begun = True
        picture = self.photo.decode()
        self.height, self.width = picture.pixels.shape[:2]
        if self._with_preview:
            self.preview = pictures.preview(picture.pixels)
        return picture
