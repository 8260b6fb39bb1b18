"""The routes of the web service, and what answers them."""

import contextlib
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path

import python_multipart  # noqa: F401 - without it FastAPI starts, and reads no form
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from pipeline.requests.addresses import BelowRoot, root_path, trusted_proxies
from pipeline.requests.api_description import (
    GENERATE,
    HEALTH,
    METRICS,
    MODELS,
    RECORD,
    REPORT,
    SCORE,
)
from pipeline.requests.guard import Guard, refused
from pipeline.requests.known_fields import FORM_FIELDS, form_only
from pipeline.requests.settings import Settings
from pipeline.requests.uploads import Form, Refusal, read_form
from pipeline.service.installed import check_installed
from pipeline.service.page import Page
from pipeline.service.service import Service, unless_gone

ROOT = Path(__file__).resolve().parents[2]


def create_app(settings: Settings) -> FastAPI:
    """The application with its routes.

    Raises UserError where there are no detectors to be had from the folder of weights; see
    `pipeline.service.installed.check_installed`.
    """
    check_installed(Path(settings.weights))
    service = Service(settings)
    page = Page(ROOT / "templates", service)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI):
        yield
        service.close()

    # The interactive pages of FastAPI fetch scripts from elsewhere; /openapi.json describes all.
    # Its own redirects to the path without a slash would name the host that a proxy asks for.
    app = FastAPI(
        title="Deepfake face detection",
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    # The last one added is the first one to see a request.
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    app.add_middleware(BelowRoot, root=root_path(settings.root_path))
    proxies = trusted_proxies(settings.trusted_proxies)
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=proxies)
    app.mount("/static", StaticFiles(directory=ROOT / "static"), name="static")

    @app.exception_handler(Refusal)
    async def refuse(_request: Request, refusal: Refusal) -> Response:
        return refused(refusal)

    @app.exception_handler(HTTPException)
    async def explain_status(request: Request, error: HTTPException) -> Response:
        root = request.scope.get("app_root_path", request.scope["root_path"])  # of /static, too
        sentence = f"{error.detail}: see {root}/openapi.json."
        answer = refused(Refusal(error.status_code, sentence))
        answer.headers.update(error.headers or {})  # which methods are allowed, after a wrong one
        return answer

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page(request: Request) -> str:
        return page.render(request)

    @app.post("/", response_class=HTMLResponse, include_in_schema=False)
    async def score_without_javascript(request: Request) -> Response:
        return await page.answer(request)

    async def answered(request: Request, work: Callable[[Form], Awaitable[Response]]) -> Response:
        """What `work` makes of the form of a request."""
        with service.places.take() as place:
            known = FORM_FIELDS[request.scope["route"].path]
            form = await read_form(request, settings, place, known)
            return await unless_gone(request, work(form))

    async def score_form(form: Form, takes_reports: bool) -> Response:
        answer = await service.score_form(form, form.flag("page"))
        return JSONResponse(page.as_json(answer, form, takes_reports))

    async def record_form(form: Form) -> Response:
        name = {"Content-Disposition": 'attachment; filename="record.zip"'}
        return Response(await service.record_form(form), 200, name, "application/zip")

    async def generate_form(form: Form) -> Response:
        answer = await service.generate_form(form, form.flag("page"))
        return JSONResponse(page.as_json(answer, form))

    async def report_form(form: Form) -> Response:
        return JSONResponse({"kept": str(await service.report_form(form))})

    @app.get("/samples/{name}", include_in_schema=False)
    def sample(name: str) -> Response:
        return Response(page.thumbnail(name), media_type="image/jpeg")

    api = APIRouter(dependencies=[Depends(form_only)])

    @api.post("/api/score", **SCORE)
    async def score(request: Request) -> Response:
        work = functools.partial(score_form, takes_reports=service.takes_reports(request))
        return await answered(request, work)

    @api.post("/api/record", response_class=Response, **RECORD)
    async def record(request: Request) -> Response:
        return await answered(request, record_form)

    @api.post("/api/report", **REPORT)
    async def report(request: Request) -> Response:
        if not service.takes_reports(request):
            raise Refusal(404, "Wrong verdicts are not collected here; mark_wrong.py does that.")
        return await answered(request, report_form)

    @api.post("/api/generate", **GENERATE)
    async def generate(request: Request) -> Response:
        return await answered(request, generate_form)

    @api.get("/api/models", **MODELS)
    async def models() -> list[dict]:
        return [detector.as_json() for detector in service.installed()]

    @api.get("/healthz", **HEALTH)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/metrics", response_class=Response, **METRICS)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @api.get("/openapi.json", include_in_schema=False)
    async def describe(request: Request) -> JSONResponse:
        here = request.scope["root_path"] or "/"
        return JSONResponse(app.openapi() | {"servers": [{"url": here}]})

    app.include_router(api)
    return app
