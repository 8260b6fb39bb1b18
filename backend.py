"""The web page and its API: upload a photo, choose a detector, see the verdict and why.

    make web                          http://127.0.0.1:8000, for this computer only
    python backend.py                 the same, with the settings below
    python backend.py --port 8080 --root-path /det --allowed-origins https://faces.example
    uvicorn backend:app               the same, with uvicorn's own options
    curl -F files=@face.jpg http://127.0.0.1:8000/api/score       rows as JSON

Each setting is an option or an environment variable, such as DETECTOR_PORT; the option counts where
both are given. The token is a variable only. docs/service.md says how to run it behind nginx and
others. Nothing of an upload is written to the disk or kept, except what
visitors at this computer report as wrong, with --reports.
Exit codes: 0 stopped by Ctrl-C; 2 wrong settings, unusable weights, or no port to listen at.
"""

import sys

from pipeline.common.command_line import run, script_parser


def main() -> None:
    from pipeline.requests.settings import add_options, read_settings

    parser = script_parser(__doc__)
    add_options(parser)
    settings = read_settings(options=vars(parser.parse_args()))
    from pipeline.service.start import serve

    serve(settings)


if __name__ == "__main__":
    run(main, requirements="requirements-web.txt")
else:  # uvicorn backend:app
    from pipeline.common.errors import UserError
    from pipeline.requests.settings import read_settings
    from pipeline.service.routes import create_app

    try:
        app = create_app(read_settings())
    except UserError as error:
        print(f"backend.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
