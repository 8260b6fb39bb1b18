"""Check that a record still holds: the same photos, the same detectors, the same rows.

    python infer_vit.py photos/ --output report.html      writes report.html and report.json
    python verify_report.py report.json photos/
    python verify_report.py report.json copy/of/photos/ --weights weights/vit.versions/v1

PATH is where the photos are now: files, folders, patterns, as for scoring. A photo is known by the
SHA-256 of its file, so it may have been moved or renamed. The detectors are looked for in weights/,
or where --weights says. Each photo that is the same is scored again; its rows are the same if the
verdicts are, the boxes of the faces lie within a pixel, and each fake_probability within 0.01. On
the machine that made the record the difference is usually zero.

A line names each photo that is missing, was changed or gets other rows; the last line sums up.
Exit codes: 0 all as recorded; 1 some photos are not; 2 a malformed record, or another detector;
130 Ctrl-C. That a record itself was not changed is known only if its SHA-256, the first line
here, was kept elsewhere: the printed report has it.
"""

import argparse
import sys
from pathlib import Path

from pipeline.common.command_line import run, script_parser


def get_args_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("report", type=Path, metavar="REPORT.json")
    add("photos", nargs="+", metavar="PATH")
    add(
        "--weights",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a detector folder, or published weights; may be given twice (default: weights/*)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def main() -> int:
    args = get_args_parser().parse_args()

    from pipeline.common.errors import UserError
    from pipeline.common.files import sha256_of
    from pipeline.rows.record import read_record
    from pipeline.scoring.verification import other_version, unknown_columns, verify

    try:
        record = read_record(args.report)
        print(f"{args.report}: SHA-256 {sha256_of(args.report)}, made {record.made}.")
    except OSError as error:
        raise UserError(f"{args.report}: this record cannot be read ({error.strerror}).") from None
    if sentence := other_version(record):
        print(sentence, file=sys.stderr)
    if unknown := unknown_columns(record):
        print(f"Columns that this version does not know: {', '.join(unknown)}.", file=sys.stderr)
    verification = verify(record, args.photos, args.weights, args.device)
    for problem in verification.problems:
        print(problem)
    print(verification)
    return 1 if verification.problems else 0


if __name__ == "__main__":
    run(main, requirements="requirements-infer.txt")
