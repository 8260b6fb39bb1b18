"""Tell real faces from deepfakes on many machines, or with many processes on this one, with Ray.

    python score_cluster.py photos/ --output rows/ --workers 2                   this machine
    python score_cluster.py --list paths.txt --output rows/ --address auto       a Ray cluster
    python score_cluster.py s3://bucket/photos --output s3://bucket/rows --address auto --workers 64
    python score_cluster.py photos/ --output rows/ --together none                 ViT alone
    python score_cluster.py photos/ --output rows/ --weights weights/efficientnet_lite0     faster

Each worker holds the compiled detector and scores units of photos; each unit becomes a file
part-….parquet in --output, with the columns of infer_meso4.py. Run the same command again after an
interruption, or with more photos: what is in the parts is not scored again. When a worker dies,
another one takes over its unit; a photo that kills its worker twice gets an `error` row.

Read the rows with pandas.read_parquet("rows/"), DuckDB, Spark or pyarrow.dataset. Videos are left
to the infer_….py scripts. On a cluster every machine needs this folder at the same path, and the
photos at the same path or in an object store. Ray starts no dashboard here and sends no reports.
Exit codes: 0 all scored; 1 some photos could not be read; 2 wrong use or no weights; 130 Ctrl-C.
"""

import sys
from collections import Counter
from pathlib import Path

from pipeline.common.command_line import positive_int, probability, run, script_parser
from pipeline.common.errors import UserError
from pipeline.common.machine import usable_cores
from pipeline.detectors.fake_class import FakeLabels, add_option
from pipeline.scoring.opening import open_detector, with_companion


def arguments():
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("sources", nargs="*", metavar="PATH", help="a folder or photo, or an address like s3://…")
    add(
        "--list",
        action="append",
        default=[],
        metavar="FILE",
        help="of paths or addresses, one a line",
    )
    add("--output", required=True, metavar="DIR", help="the folder of the parts, or its address")
    add("--weights", type=Path, action="append", metavar="DIR", help="default: weights/vit")
    add("--together", metavar="DIR|none", help="as for infer_vit.py")
    add_option(parser)
    add("--workers", type=positive_int, default=usable_cores(), metavar="N")
    add("--cpus-per-worker", type=positive_int, default=1, metavar="N", help="default: 1")
    add("--part-size", type=positive_int, default=1000, metavar="N", help="photos a part (1000)")
    add("--address", metavar="ADDRESS", help="of a Ray cluster; auto: the one of this machine")
    add("--face", choices=("auto", "none"), help="as for infer_meso4.py")
    add("--threshold", type=probability, metavar="T")
    add("--stability", action="store_true", help="as for infer_meso4.py, up to six times as slow")
    add("--batch-size", type=positive_int, default=32, metavar="N")
    args = parser.parse_args()
    if not args.sources and not args.list:
        parser.error("name a PATH or a --list")
    return args


def main() -> int:
    args = arguments()
    from tqdm import tqdm

    from pipeline.detectors.detector import WEIGHTS
    from pipeline.scoring.cluster import Settings, score
    from pipeline.scoring.cluster_listing import list_photos

    labels = FakeLabels(args.fake_labels)
    weights = args.weights or [WEIGHTS / "vit"]
    detectors = [open_detector(path, fake_labels=labels) for path in weights]
    labels.require_used()
    if len(detectors) == 1:
        detectors = [with_companion(detectors[0], args.together, args.weights)]
    elif args.together:
        raise UserError(
            "--together DIR scores with the mean of two: give --weights once, not twice."
        )
    members = detectors[0].members
    settings = Settings(
        tuple(str(detector.folder.resolve()) for detector in members or detectors),
        args.output,
        args.face,
        args.threshold,
        args.batch_size,
        args.cpus_per_worker,
        args.stability,
        as_one=bool(members),
    )
    photos = list_photos(args.sources, args.list)
    total = Counter()
    with tqdm(unit=" photos", file=sys.stderr) as progress:
        for counts in score(photos, settings, args.workers, args.part_size, args.address):
            total += counts
            progress.update(counts["photos"])
    print(
        f"{total['photos']:,} photos, {total['faces']:,} faces: {total['fake']:,} fake, "
        f"{total['uncertain']:,} uncertain, {total['real']:,} real; {total['no face']:,} without a "
        f"face; {total['error']:,} errors; {total['seconds']:.1f} s of workers",
        file=sys.stderr,
    )
    return 1 if total["error"] else 0


if __name__ == "__main__":
    run(main, "Run the same command again: what is in the parts is not scored again.")
