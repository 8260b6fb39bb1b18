"""Packs the detector folders for a release, so that large weights need not live in the repository.

    python manage_detectors.py release --base-url https://github.com/OWNER/REPOSITORY/releases/download/v1

Every detector folder below weights/ is verified against its own checksums and packed into
release/<name>.tar; the same folder always gives the same bytes. SHA256SUMS lists the archives (for
`sha256sum --check`), and weights/releases.json learns their addresses below the base address, sizes
and checksums. Then upload what is in release/ to that address and commit weights/releases.json.
"""

import argparse
import json
import sys
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write, sha256_of
from pipeline.detectors.detector import check_folder
from pipeline.foreign.downloads import (
    WEIGHTS,
    check_entries,
    read_entries,
    require_web_address,
)
from pipeline.foreign.packing import pack_detector


def main(argv: list[str] | None = None) -> int:
    args = get_args_parser().parse_args(argv)
    try:
        require_web_address(args.base_url)
        detectors = find_detectors(args.weights)
        entries = pack_all(detectors, args.output, args.base_url)
        update_list(args.weights / "releases.json", entries)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error}: free space, change permissions or name other folders.", file=sys.stderr)
        return 2
    for entry in entries:
        print(f"{args.output / entry['name']}.tar  {entry['size']:,} bytes  {entry['sha256']}")
    print(f"Upload what is in {args.output} to {args.base_url}, then commit releases.json.")
    return 0


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python manage_detectors.py release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=WEIGHTS,
        metavar="DIR",
        help="where the detector folders and releases.json are (default: weights/)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("release"),
        metavar="DIR",
        help="where the archives and SHA256SUMS are written (default: release/)",
    )
    parser.add_argument(
        "--base-url",
        required=True,
        metavar="URL",
        help="the address below which the archives will be found",
    )
    return parser


def find_detectors(weights: Path) -> dict[str, dict]:
    """The detector folders in `weights`: {folder: content of its detector.json}, each verified.

    Raises UserError where there is none, or one fails its checksums or is named differently.
    """
    if not weights.is_dir():
        raise UserError(f"{weights} is not a folder: name the one with the detectors by --weights.")
    folders = sorted(path.parent for path in weights.glob("*/detector.json"))
    # Hidden folders are what a killed download or training left behind.
    folders = [folder for folder in folders if not folder.name.startswith(".")]
    if not folders:
        raise UserError(f"{weights} holds no detector folder: train one, or name another folder.")
    detectors = {folder: check_folder(folder) for folder in folders}
    for folder, detector in detectors.items():
        if detector["name"] != folder.name:
            raise UserError(
                f"{folder} holds a detector named {detector['name']!r}: rename the folder to that."
            )
    return detectors


def pack_all(detectors: dict[Path, dict], output: Path, base_url: str) -> list[dict]:
    """Write `output`/<name>.tar for each detector, and SHA256SUMS; the entries for the list."""
    entries = []
    for folder, detector in detectors.items():
        architecture = detector.get("architecture", "not stated")
        archive = output / f"{folder.name}.tar"
        with atomic_write(archive, "wb") as file:
            pack_detector(folder, file)
        entries.append(
            {
                "name": folder.name,
                "url": f"{base_url.rstrip('/')}/{archive.name}",
                "sha256": sha256_of(archive),
                "size": archive.stat().st_size,
                "kind": "detector",
                "licence": "see its README.md",
                "description": f"Detector, architecture {architecture}",
            }
        )
    with atomic_write(output / "SHA256SUMS") as file:
        file.writelines(f"{entry['sha256']}  {entry['name']}.tar\n" for entry in entries)
    return entries


def update_list(path: Path, entries: list[dict]) -> None:
    """Put `entries` into the list at `path`, in the place of those of the same names.

    All other entries stay, as do the licence and description that somebody wrote for a detector.
    Raises UserError where an entry's name belongs to a plain file, or the list is malformed.
    """
    old_entries = read_entries(path) if path.exists() else []
    check_entries(old_entries, path)
    listed = {entry["name"]: entry for entry in old_entries}
    for entry in entries:
        old = listed.get(entry["name"])
        if old is not None and old["kind"] != "detector":
            raise UserError(f"{path}: {entry['name']} is a plain file there: rename the detector.")
        written = {key: old[key] for key in ("licence", "description")} if old else {}
        listed[entry["name"]] = entry | written
    check_entries(list(listed.values()), path)
    with atomic_write(path) as file:
        json.dump(list(listed.values()), file, indent=2, ensure_ascii=False)
        file.write("\n")
