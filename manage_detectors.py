"""What can be done with a finished detector folder: calibrate it anew, make it faster, release it.

    python manage_detectors.py recalibrate weights/meso4 --data dataset/     a threshold of your own
    python manage_detectors.py precision weights/meso4 --data dataset/       8 bits, where it can
    python manage_detectors.py average weights/first weights/second …        one of several
    python manage_detectors.py card weights/*                                the model cards again
    python manage_detectors.py release --base-url https://…                  archives to upload

Each has its own --help.
"""

import argparse

from pipeline.common.command_line import run, script_parser
from pipeline.evaluation import model_card, precision
from pipeline.foreign import release
from pipeline.training import recalibrate, weight_average

COMMANDS = {
    "recalibrate": recalibrate.main,
    "precision": precision.main,
    "average": weight_average.main,
    "card": model_card.main,
    "release": release.main,
}


def main() -> int | None:
    parser = script_parser(__doc__)
    parser.add_argument("command", choices=tuple(COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="those of the command")
    args = parser.parse_args()
    return COMMANDS[args.command](args.arguments)


if __name__ == "__main__":
    run(main)
