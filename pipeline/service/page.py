"""The page that visitors see, and what it may say of a face by what its detector was measured."""

import functools
from pathlib import Path
from typing import NamedTuple

from fastapi.responses import HTMLResponse
from markupsafe import Markup
from starlette.requests import Request

from pipeline.common.html_templates import environment
from pipeline.photos.images import read_image
from pipeline.requests.known_fields import FORM_FIELDS
from pipeline.requests.settings import SAMPLES
from pipeline.requests.uploads import Form, Refusal, read_form
from pipeline.rows.rows import Row, by_face
from pipeline.service import pictures
from pipeline.service.heat_maps import NO_EXPLAINER, can_explain
from pipeline.service.installed import NO_DETECTOR, Installed
from pipeline.service.service import Answer, Service, Shown, unless_gone

THUMBNAIL_SIDE = 160
WORDS = {"fake": "Looks fake", "real": "Looks real", "uncertain": "Undecided"}


class Judgement(NamedTuple):
    """What one detector says of one face."""

    row: Row
    detector: Installed
    word: str
    meaning: list[str]
    seen: str | None
    heat_map: str | None


class Page:
    """Renders templates/index.html, whole or only its results."""

    def __init__(self, templates: Path, service: Service):
        pages = environment(templates)
        pages.filters["percent"] = lambda share: f"{share:.0%}".replace("%", " %")
        self._index = pages.get_template("index.html")
        self._results = pages.get_template("results.html")
        self._service = service

    def render(self, request: Request, answer: Answer | None = None, error: str = "") -> str:
        """The whole page, with the results of a form or the sentence why there are none."""
        return self._index.render(
            root=request.scope["root_path"],
            detectors=self._service.installed(),
            no_detector=NO_DETECTOR,
            samples=self._service.samples(),
            settings=self._service.settings,
            heat_maps_note="" if can_explain() else NO_EXPLAINER,
            results=self.results(answer) if answer else "",
            error=error,
        )

    def results(self, answer: Answer) -> Markup:
        """The part of the page that shows an answer."""
        detectors = {detector.name: detector for detector in answer.detectors}
        photos = [(photo, _judgements(photo, detectors)) for photo in answer.photos]
        rendered = self._results.render(photos=photos, notes=answer.notes)
        return Markup(rendered)

    def as_json(self, answer: Answer, form: Form) -> dict:
        """The API's answer; where the page's script asks for it, with `html` to show."""
        html = {"html": self.results(answer)} if form.flag("page") else {}
        return answer.as_json() | html

    async def answer(self, request: Request) -> HTMLResponse:
        """Score a form that a browser without JavaScript has sent, and show the whole page."""
        try:
            with self._service.places.take() as place:
                form = await read_form(request, self._service.settings, place, FORM_FIELDS["/"])
                generate = form.flag("generate")
                work = self._service.generate_form if generate else self._service.score_form
                answer = await unless_gone(request, work(form, True))
                return HTMLResponse(self.render(request, answer))
        except Refusal as refusal:
            headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after else None
            page = self.render(request, error=refusal.sentence)
            return HTMLResponse(page, refusal.status, headers)

    def thumbnail(self, sample: str) -> bytes:
        """A small JPEG of a sample photo. Raises Refusal (404) where there is none of that name."""
        if sample not in self._service.samples():
            raise Refusal(404, "There is no such sample photo.")
        return _thumbnail(sample)


@functools.cache
def _thumbnail(sample: str) -> bytes:
    return pictures.jpeg(read_image(SAMPLES / sample), THUMBNAIL_SIDE)


def _judgements(photo: Shown, detectors: dict[str, Installed]) -> list[list[Judgement]]:
    """What the detectors say of each face, face by face."""
    pictures_of = {
        id(row): pair for row, *pair in zip(photo.rows, photo.seen, photo.heat_maps, strict=True)
    }
    return [
        [
            Judgement(
                row,
                detectors[row.model],
                WORDS[row.verdict],
                meaning(row, detectors[row.model]),
                *pictures_of[id(row)],
            )
            for row in rows
            if row.fake_probability is not None
        ]
        for rows in by_face(photo.rows)
    ]


def meaning(row: Row, detector: Installed) -> list[str]:
    """Sentences on what a verdict is worth, from what was measured of its detector."""
    fpr_percent = round((1 - detector.recall_real) * 100)
    found = round(detector.recall_fake * 100)
    missed = round(detector.missed_fakes * 100)
    sentences = {
        "fake": [
            f"Of 100 real faces that tested it, about {fpr_percent} scored high enough to be "
            "called fake, too.",
        ],
        "real": [
            f"Of 100 fakes of the kinds it was trained on, about {missed} scored low enough to be "
            "called real, too. A fake made in a way it has not learned may well be among them.",
        ],
        "uncertain": [
            f"Too high for most real faces, too low to call it fake: it catches about {found} of "
            "100 fakes of the kinds it was trained on, and many of the others end up here.",
        ],
    }[row.verdict]
    side = max(row.right - row.left, row.bottom - row.top)
    if side < detector.input_size / 2:
        sentences.append(
            f"The face is only {side} pixels large and the detector looks at "
            f"{detector.input_size}: soft faces look to it like what generators make."
        )
    return sentences
