"""The web page and its API: upload a photo, choose a detector, see the verdict and why.

    make web                          http://127.0.0.1:8000, for this computer only
    uvicorn backend:app               the same, with uvicorn's own options
    python backend.py                 the same, with the settings below
    python -m pipeline.service_settings                           lists all settings
    curl -F files=@face.jpg http://127.0.0.1:8000/api/score       rows as JSON

Settings are environment variables, such as DETECTOR_HOST, DETECTOR_PORT, DETECTOR_ALLOWED_HOSTS,
DETECTOR_TOKEN and DETECTOR_MAX_FILE_MB. Nothing of an upload is written to the disk or kept.
"""

from pipeline.commands import run, script_parser


def main() -> None:
    script_parser(__doc__).parse_args()
    import uvicorn

    from pipeline.service_routes import create_app
    from pipeline.service_settings import read_settings

    settings = read_settings()
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )


if __name__ == "__main__":
    run(main, requirements="requirements-web.txt")
else:  # uvicorn backend:app
    from pipeline.errors import UserError
    from pipeline.service_routes import create_app
    from pipeline.service_settings import read_settings

    try:
        app = create_app(read_settings())
    except UserError as error:
        raise SystemExit(f"backend.py: {error}") from None
