"""What can be done with a finished detector folder: calibrate it anew, make it fast, release it.

    python manage_detectors.py recalibrate weights/meso4 --data dataset/     a threshold of your own
    python manage_detectors.py precision weights/meso4 --data dataset/       8 bits, where it can
    python manage_detectors.py shrink weights/vit --data dataset/            an eighth of the size
    python manage_detectors.py average weights/first weights/second …        one of several
    python manage_detectors.py together weights/vit weights/efficientnet_lite0     as one
    python manage_detectors.py card weights/*                                the model cards again
    python manage_detectors.py for-hub weights/vit --output folder           as others load it
    python manage_detectors.py release --base-url https://…                  archives to upload

Each has its own --help.
"""

import argparse
from importlib import import_module

from pipeline.common.command_line import run, script_parser

COMMANDS = {  # each module has main(arguments)
    "recalibrate": "pipeline.training.recalibrate",
    "precision": "pipeline.evaluation.precision",
    "shrink": "pipeline.training.shrinking",
    "average": "pipeline.training.weight_average",
    "together": "pipeline.training.together",
    "card": "pipeline.evaluation.model_card",
    "for-hub": "pipeline.training.for_hub",
    "release": "pipeline.foreign.release",
}


def main() -> int | None:
    parser = script_parser(__doc__)
    parser.add_argument("command", choices=tuple(COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="those of the command")
    args = parser.parse_args()
    return import_module(COMMANDS[args.command]).main(args.arguments)


if __name__ == "__main__":
    run(main)
