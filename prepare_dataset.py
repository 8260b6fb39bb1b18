"""Make a dataset of face crops from photos, videos, or a well-known set.

    python prepare_dataset.py --list                       where the well-known sets can be had
    python prepare_dataset.py photos/ --output dataset/    photos/real/… and photos/fake/…
    python prepare_dataset.py FaceForensics/ Celeb-DF-v2/ --output dataset/ --frames 16

A SOURCE is a folder with real/ and fake/ in it (their sub-folders name the generator), one with
these two in train/ and in validate/ (this split is kept), or a published set, unpacked.
Of each photo, and of --frames frames of each video, the largest face is cropped. All crops are
stored as PNG, whatever the source: lossless, so neither class gains a trace of compression.

Written into the output folder:
  {train,validate}/{real,fake}/<generator>/<name>.png   no group (person, source video) is in both
  test/…         what the publishers set aside for testing; training never looks at it
  manifest.csv   each crop's label, generator, group, split, source and box; can be used as --data
  skipped.csv    what could not be read or shows no face, with the reason
  audit.json     what might make results too good to be true; also printed

If it was stopped (Ctrl-C, power cut), run the same command again: it makes only what is missing.
About 10 photos a second on two cores. Exit codes: 0 all done; 1 some files were skipped; 2 wrong
use; 130 stopped by Ctrl-C.
"""

import argparse
import json
from pathlib import Path

from pipeline.common.command_line import run, script_parser
from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.data.cropping import CropSettings
from pipeline.data.known_sets import describe_known_sets
from pipeline.data.preparation import (
    find_files,
    make_crops,
    plan_splits,
    source_format_leak,
    write_manifest,
)
from pipeline.photos.faces import DEFAULT_MARGIN


def get_args_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("sources", nargs="*", type=Path, metavar="SOURCE", help="folder of photos or videos")
    add("--output", type=Path, metavar="DIR", help="where the dataset goes")
    add("--face", choices=("auto", "none"), default="auto", help="none: use whole pictures")
    add("--margin", type=float, default=DEFAULT_MARGIN, help="crop by face (%(default)s)")
    add("--size", type=int, help="longest side of a stored crop, in pixels (default: as it is)")
    add("--frames", type=int, default=8, help="frames of each video to use (%(default)s)")
    add(
        "--validate-fraction",
        type=float,
        default=0.2,
        help="share of each generator's groups that validates (%(default)s)",
    )
    add("--seed", type=int, default=0, help="seed of the split (%(default)s)")
    add("--workers", type=int, help="threads (default: one for each core)")
    add("--list", action="store_true", help="show the well-known sets and where to get them")
    return parser


def main() -> int:
    args = get_args_parser().parse_args()
    if args.list:
        print(describe_known_sets())
        return 0
    check(args)
    files = find_files(args.sources, args.output)
    planned, left_out = plan_splits(files, args.validate_fraction, args.seed)
    if left_out:
        print(f"{left_out:,} fakes left out: of their two persons, one trains and one validates")
    settings = CropSettings(args.face, args.margin, args.size, args.frames)
    crops, skipped = make_crops(planned, args.output, settings, args.workers)
    dataset = write_manifest(args.output, crops, skipped)

    from pipeline.data.audit import (  # seconds, which --list can do without
        audit_dataset,
        format_audit,
    )

    audit = audit_dataset(dataset, args.workers)
    if leak := source_format_leak(crops):
        audit["warnings"].insert(0, leak)
    with atomic_write(args.output / "audit.json") as file:
        json.dump(audit, file, indent=2)
    print(format_audit(audit))
    print(f"\n{len(crops):,} crops in {args.output}, {len(skipped):,} files skipped")
    for skip in skipped[:10]:
        print(f"  {skip.path}: {skip.reason}")
    if len(skipped) > 10:
        print(f"  … all of them in {args.output / 'skipped.csv'}")
    return 1 if skipped else 0


def check(args: argparse.Namespace) -> None:
    if not args.sources or args.output is None:
        raise UserError(
            "Name the folders to take photos from, and --output, the folder for the dataset; "
            "--help has examples, --list names the well-known sets."
        )
    for name in ("size", "frames", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}.")
    if not 0 < args.validate_fraction < 1:
        raise UserError(
            f"--validate-fraction must lie between 0 and 1, not at {args.validate_fraction:g}."
        )
    if not 1 <= args.margin <= 10:
        raise UserError(f"--margin must lie between 1 and 10, not at {args.margin:g}.")


if __name__ == "__main__":
    run(main, after_stop="Run the same command again to go on from there.")
