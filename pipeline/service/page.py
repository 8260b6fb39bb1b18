"""The page that visitors see: rendered from templates/."""

import functools
from pathlib import Path

from fastapi.responses import HTMLResponse
from markupsafe import Markup
from starlette.requests import Request

from pipeline.common.html_templates import environment
from pipeline.photos.images import read_image
from pipeline.requests.known_fields import FORM_FIELDS
from pipeline.requests.settings import SAMPLES
from pipeline.requests.uploads import Form, Refusal, read_form
from pipeline.service import pictures
from pipeline.service.heat_maps import NO_EXPLAINER, can_explain
from pipeline.service.installed import NO_DETECTOR
from pipeline.service.results import WORDS, results_of
from pipeline.service.service import Answer, Service, unless_gone

THUMBNAIL_SIDE = 160


class Page:
    """Renders templates/index.html, whole or only its results."""

    def __init__(self, templates: Path, service: Service):
        pages = environment(templates)
        pages.filters["percent"] = _percent
        self._index = pages.get_template("index.html")
        self._results = pages.get_template("results.html")
        self._service = service

    def render(self, request: Request, answer: Answer | None = None, error: str = "") -> str:
        """The whole page, with the results of a form or the sentence why there are none."""
        return self._index.render(
            root=request.scope["root_path"],
            detectors=self._service.installed(),
            no_detector=NO_DETECTOR,
            why_alone=self._service.why_alone(),
            samples=self._service.samples(),
            settings=self._service.settings,
            heat_maps_note="" if can_explain() else NO_EXPLAINER,
            words=WORDS,
            results=self.results(answer, loaded=True) if answer else "",
            notes=answer.notes if answer else [],
            title=self._title(answer, error),
            error=error,
        )

    def results(self, answer: Answer, loaded: bool = False, takes_reports: bool = False) -> Markup:
        """The part of the page that shows an answer; `loaded`: in a page that a browser loads for
        it, so that its reader is taken to it; `takes_reports`: that a verdict is wrong."""
        shown = {"results": results_of(answer), "loaded": loaded, "takes_reports": takes_reports}
        return Markup(self._results.render(shown))

    def as_json(self, answer: Answer, form: Form, takes_reports: bool = False) -> dict:
        """The API's answer; where the page's script asks for it, with `html` to show."""
        asked = form.flag("page")
        html = {"html": self.results(answer, takes_reports=takes_reports)} if asked else {}
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

    @staticmethod
    def _title(answer: Answer | None, error: str) -> str:
        """What a page that is loaded for an answer is called, before its usual name."""
        if error:
            return "Not checked"
        results = results_of(answer) if answer else []
        return "; ".join(f"{result.photo.name}: {result.words}" for result in results)

    def thumbnail(self, sample: str) -> bytes:
        """A small JPEG of a sample photo. Raises Refusal (404) where there is none of that name."""
        if sample not in self._service.samples():
            raise Refusal(404, "There is no such sample photo.")
        return _thumbnail(sample)


@functools.cache
def _thumbnail(sample: str) -> bytes:
    return pictures.jpeg(read_image(SAMPLES / sample), THUMBNAIL_SIDE)


def _percent(share: float) -> str:
    """A share 0…1 in words; of small ones, as of real faces called fake, a figure more."""
    return f"{share:.{0 if share >= 0.1 else 1}%}".replace("%", " %")
