"""The scoring command, which every infer_<model>.py is: its arguments, and what they do."""

import argparse
import os
import sys
from pathlib import Path

from pipeline.common.command_line import positive_float, positive_int, probability, script_parser
from pipeline.common.errors import UserError
from pipeline.detectors.fake_class import add_option
from pipeline.photos.photo import VIDEO_SUFFIXES
from pipeline.scoring.opening import Network, any_of, open_detectors, with_companion

HOW_TO_GO_ON = "With --output and --continue the next run goes on from here."  # of scoring


def scoring_parser(script_docstring: str, *networks: Network) -> argparse.ArgumentParser:
    """The arguments of every infer_<model>.py, which scores with the `networks`."""
    arguments = script_parser(script_docstring)
    arguments.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a photo or video, a folder (searched with all its sub-folders), a pattern, or - for "
        "a list of paths on standard input",
    )
    default = " and ".join(
        any_of([f"weights/{name}" for name in network.architectures]) for network in networks
    )
    twice = "; given twice, both score" if len(networks) > 1 else ""
    arguments.add_argument(
        "--weights",
        type=Path,
        action="append",
        metavar="DIR",
        help=f"detector folder, or published weights{twice} (default: {default})",
    )
    if len(networks) == 1:
        arguments.add_argument(
            "--together",
            metavar="DIR|none",
            help="score with the mean of this detector and the first (default: that in weights/ "
            "with which the script's own was calibrated, if any; see manage_detectors.py together)",
        )
    add_option(arguments)
    arguments.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the rows to a .csv, .jsonl or .parquet file; or to an .html file, a page for "
        "the browser, with a record in a .json file beside it; or only to such a .json file; "
        "instead of showing them",
    )
    arguments.add_argument(
        "--continue",
        dest="resume",
        action="store_true",
        help="continue an interrupted --output: score only what is missing or failed",
    )
    arguments.add_argument(
        "--face",
        choices=("auto", "none"),
        help="auto: find the faces and cut them out; none: score whole pictures (default: as the "
        "detector was trained)",
    )
    arguments.add_argument(
        "--threshold",
        type=probability,
        metavar="T",
        help="call a face fake at or above this fake_probability (default: the detector's own)",
    )
    arguments.add_argument(
        "--stability",
        action=argparse.BooleanOptionalAction,
        help="score faces near a threshold again, after small changes such as JPEG 50; a verdict "
        "that does not hold becomes uncertain (default: for a single photo)",
    )
    arguments.add_argument(
        "--explain",
        type=Path,
        metavar="DIR",
        help="write a picture of each face with a heat map of what suggests a fake, and a timeline "
        "of each video, into this folder (needs requirements.txt)",
    )
    frames = arguments.add_mutually_exclusive_group()
    frames.add_argument(
        "--frames",
        type=positive_int,
        default=32,
        metavar="N",
        help="number of frames of a video to look at, evenly spaced (default: 32)",
    )
    frames.add_argument(
        "--every",
        type=positive_float,
        metavar="SECONDS",
        help="look at one frame of a video every SECONDS",
    )
    arguments.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments.add_argument("--batch-size", type=positive_int, default=8, metavar="N")
    return arguments


def score_photos(args: argparse.Namespace, *networks: Network) -> int:
    """The scoring command: score `args.paths` with a detector of each of the `networks`.

    Returns 0, or 1 where some photos could not be scored. Raises UserError.
    """
    from pipeline.common.machine import one_thread_for_opencv
    from pipeline.common.memory import keep_freed_memory
    from pipeline.photos.inputs import find_photos
    from pipeline.rows.files import has_record, open_output
    from pipeline.rows.rows import COMPARED_FIELDS, FIELDS
    from pipeline.rows.table import Summary
    from pipeline.scoring.provenance import describe_run
    from pipeline.scoring.scoring import Scorer
    from pipeline.scoring.video_rows import join
    from pipeline.videos.frames import Sampling, with_frames

    keep_freed_memory()
    one_thread_for_opencv()
    detectors = open_detectors(args.weights, networks, args.fake_labels)
    if len(networks) == 1:
        detectors = [with_companion(detectors[0], args.together, args.weights)]
    heat_maps = None
    if args.explain:
        from pipeline.scoring.explanation import HeatMapFolder  # which needs a training framework

        heat_maps = HeatMapFolder(args.explain, detectors)
    options = {"face_mode": args.face, "threshold": args.threshold}  # what shapes rows
    scorer = Scorer(*detectors, **options, device=args.device, batch_size=args.batch_size)
    stability = _is_single_photo(args.paths) if args.stability is None else args.stability
    options["stability"] = stability
    sampling = Sampling(args.frames, args.every)
    described = scorer.described(stability)
    run = describe_run(described, options, sampling) if has_record(args.output) else None
    models = [detector.name for detector in detectors]
    fields = COMPARED_FIELDS if len(networks) > 1 else FIELDS
    settings = scorer.settings(stability)
    with open_output(args.output, models, args.resume, fields, settings, run) as output:
        photos = find_photos(args.paths)
        summary = Summary(models)
        try:
            missing = (photo for photo in photos if photo.path not in output.done)
            pictures = output.watch(with_frames(missing, sampling))
            for scored in join(scorer.look(pictures, stability), scorer.verdict):
                if heat_maps:  # before the rows: --continue takes what has rows to be finished
                    output.note_heat_maps(heat_maps.write(scored))
                output.write(scored.rows)
                summary.add(scored.rows)
        finally:
            print(summary.line(photos.skipped), file=sys.stderr)
    if not summary.photos and not summary.videos and not output.done:
        raise UserError(f"{' '.join(args.paths)}: there are no photos or videos here.")
    return 1 if summary.errors else 0


def _is_single_photo(paths: list[str]) -> bool:
    is_video = Path(paths[0]).suffix.lower() in VIDEO_SUFFIXES
    return len(paths) == 1 and os.path.isfile(paths[0]) and not is_video
