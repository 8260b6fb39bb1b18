"""The web page and its API: upload a photo, choose a detector, see the verdict and why.

    make web                          http://127.0.0.1:8000, for this computer only
    uvicorn backend:app               the same, with uvicorn's own options
    python backend.py                 the same, with the settings below
    python -m pipeline.service_settings                           lists all settings
    curl -F files=@face.jpg http://127.0.0.1:8000/api/score       rows as JSON

Settings are environment variables, such as DETECTOR_HOST, DETECTOR_PORT, DETECTOR_ALLOWED_HOSTS,
DETECTOR_TOKEN and DETECTOR_MAX_FILE_MB. Nothing of an upload is written to the disk or kept.
"""

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from pipeline.api_description import GENERATE, MODELS, SCORE
from pipeline.commands import script_parser
from pipeline.errors import UserError
from pipeline.guard import Guard, refused
from pipeline.page import Page
from pipeline.service import Answer, Service, unless_gone
from pipeline.service_settings import Settings, read_settings
from pipeline.uploads import Refusal, read_form

ROOT = Path(__file__).resolve().parent


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
        return refused(Refusal(error.status_code, f"{error.detail}: see /openapi.json."))

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

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return app


try:
    settings = read_settings()
except UserError as error:
    raise SystemExit(f"backend.py: {error}") from None
app = create_app(settings)

if __name__ == "__main__":
    script_parser(__doc__).parse_args()
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
