"""The routes of the web service, and what answers them."""

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import python_multipart  # noqa: F401 - without it FastAPI starts, and reads no form
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from pipeline.api_description import GENERATE, HEALTH, METRICS, MODELS, SCORE
from pipeline.guard import Guard, refused
from pipeline.page import Page
from pipeline.service import Answer, Service, unless_gone
from pipeline.service_settings import Settings
from pipeline.uploads import Refusal, read_form

ROOT = Path(__file__).resolve().parent.parent


def create_app(settings: Settings) -> FastAPI:
    """The application with its routes."""
    service = Service(settings)
    page = Page(ROOT / "templates", service)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI):
        yield
        service.close()

    # The interactive pages of FastAPI fetch scripts from elsewhere; /openapi.json describes all.
    app = FastAPI(title="Deepfake face detection", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    app.mount("/static", StaticFiles(directory=ROOT / "static"), name="static")

    @app.exception_handler(Refusal)
    async def refuse(_request: Request, refusal: Refusal) -> Response:
        return refused(refusal)

    @app.exception_handler(HTTPException)
    async def explain_status(_request: Request, error: HTTPException) -> Response:
        answer = refused(Refusal(error.status_code, f"{error.detail}: see /openapi.json."))
        answer.headers.update(error.headers or {})  # which methods are allowed, after a wrong one
        return answer

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> str:
        return page.render()

    @app.post("/", response_class=HTMLResponse, include_in_schema=False)
    async def score_without_javascript(request: Request) -> Response:
        return await page.answer(request)

    async def answered(request: Request, work: Callable[..., Awaitable[Answer]]) -> JSONResponse:
        with service.places.take() as place:
            form = await read_form(request, settings, place)
            answer = await unless_gone(request, work(form, form.flag("page")))
            return JSONResponse(page.as_json(answer, form))

    @app.post("/api/score", **SCORE)
    async def score(request: Request) -> JSONResponse:
        return await answered(request, service.score_form)

    @app.post("/api/generate", **GENERATE)
    async def generate(request: Request) -> JSONResponse:
        return await answered(request, service.generate_form)

    @app.get("/api/models", **MODELS)
    async def models() -> list[dict]:
        return [detector.as_json() for detector in service.installed()]

    @app.get("/samples/{name}", include_in_schema=False)
    def sample(name: str) -> Response:
        return Response(page.thumbnail(name), media_type="image/jpeg")

    @app.get("/healthz", **HEALTH)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, **METRICS)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return app
