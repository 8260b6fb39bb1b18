"""Download published weights into weights/, verified by size and SHA-256.

    python download_weights.py                       what is available and what is installed
    python download_weights.py Meso4_DF              one of them (more names may follow)
    python download_weights.py --all
    python download_weights.py --all --from https://mirror.example/weights

Run the same command again to continue an interrupted download. Proxies are taken from the
environment (http_proxy, https_proxy, no_proxy). Without a network, the error message
says which address to fetch elsewhere and where to put the file.
Exit codes: 0 all there; 2 wrong use, or something could not be downloaded; 130 stopped by Ctrl-C.
"""

import argparse
import sys
from pathlib import Path

from pipeline.common.command_line import run, script_parser
from pipeline.common.errors import UserError
from pipeline.foreign.downloads import WEIGHTS, Release, download, load_releases, status


def get_args_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to download")
    parser.add_argument("--all", action="store_true", help="download everything")
    parser.add_argument(
        "--output",
        type=Path,
        default=WEIGHTS,
        metavar="DIR",
        help="where to put it (default: weights/ beside this script)",
    )
    parser.add_argument(
        "--from",
        dest="mirror",
        metavar="URL",
        help="a mirror: an address that replaces everything before the file name",
    )
    return parser


def main() -> int:
    args = get_args_parser().parse_args()
    releases = load_releases()
    unknown = [name for name in args.names if name not in releases]
    if unknown:
        raise UserError(f"There is no {', '.join(unknown)}: choose from {', '.join(releases)}.")
    names = list(releases) if args.all else args.names
    if not names:
        print(table(releases, args.output))
        return 0
    failed = 0
    for name in names:
        try:
            print(download(releases[name], args.output, args.mirror))
        except UserError as error:
            print(error, file=sys.stderr)
            failed += 1
    return 2 if failed else 0


def table(releases: dict[str, Release], folder: Path) -> str:
    rows = [("name", "MB", "licence", "installed", "what it is")]
    for release in releases.values():
        size = f"{release.size / 1e6:.1f}"
        rows.append(
            (release.name, size, release.licence, status(release, folder), release.description)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, after_stop="Run the same command again to go on from there.")
