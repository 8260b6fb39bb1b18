"""Collect a picture whose verdict was wrong, so that detectors can be tested on it and learn it.

    python infer_vit.py photos/ --output rows.csv
    python mark_wrong.py rows.csv --path photos/anna.jpg --truth real
    python mark_wrong.py rows.csv --path photos/party.jpg --face 2 --truth fake

ROWS is any file of rows, a report or its record. The face is put into dataset/reported/, as the
network saw it but not resized, and its row into dataset/reported/reports.csv: which detector said
what, with which probability. Nothing leaves this computer, and git ignores the folder. Doing it
twice changes nothing. Then:

    python compare_models.py weights/* --data dataset/reported test/*
    python incremental_train_vit.py --from weights/vit --new-data dataset/reported --replay dataset/

A few pictures that a detector got wrong are a hard test set, not a fair one: do not choose a
threshold by it. Exit codes: 0 collected; 2 wrong use: the path is not in the rows, the picture
cannot be read, or its verdict is --truth already.
"""

import argparse
from pathlib import Path

from pipeline.common.command_line import run, script_parser, whole_number
from pipeline.common.labels import CLASS_NAMES


def get_args_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("rows", type=Path, metavar="ROWS")
    add("--path", required=True, metavar="PHOTO", help="as it stands in the rows")
    add("--truth", required=True, choices=CLASS_NAMES, help="what is true of the face")
    add(
        "--face",
        type=whole_number,
        metavar="N",
        help="the number of the face in its row (needed where the photo shows several)",
    )
    add(
        "--weights",
        type=Path,
        metavar="DIR",
        help="the detector that scored, to cut the face out alike (default: that in weights/)",
    )
    add(
        "--output", type=Path, default=Path("dataset/reported"), metavar="DIR", help="(%(default)s)"
    )
    return parser


def main() -> int:
    args = get_args_parser().parse_args()

    from pipeline.rows.files import read_rows
    from pipeline.scoring.reported import REPORTS, collect, margin_of, read_photo, wrong_rows

    reports = wrong_rows(read_rows(args.rows), args.path, args.face, args.truth)
    photo = read_photo(args.path)
    [picture] = collect(reports, photo, args.output, margin_of(args.weights))
    for report in reports:
        row = report.row
        print(
            f"{picture}: {args.truth}, called {row['verdict']} by {row['model']} "
            f"({row['fake_probability']:.1%} fake)."
        )
    print(f"All reports: {args.output / REPORTS}")
    return 0


if __name__ == "__main__":
    run(main, requirements="requirements-infer.txt")
