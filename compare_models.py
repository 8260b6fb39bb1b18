"""Compare detectors on labelled pictures that none of them was trained on.

    python compare_models.py weights/* --data test/*                          → reports/
    python compare_models.py weights/meso4 weights/vit --data test/* --sample 100
    python compare_models.py weights/* --data test/* --training-data my_kinds.csv

DETECTOR is a detector folder, MesoNet's published .h5, or anything else that scoring takes; other
files in weights/ are named and skipped. TEST is a folder with real/, fake/ or both, one for each
generator or source, or a CSV file path,label. Pictures are scored whole: they should be face crops,
as prepare_dataset.py makes them.

The report (README.md, index.html, results.csv, results.json, figures/ as PNG and SVG) has for each
detector and set accuracy, recalls, AUC, AP, EER, TPR at 1 and 5 % FPR, ECE and Brier score with
95 % intervals; DeLong's test between detectors; 16 degradations; size, speed, training; an ensemble
(the mean of the calibrated logits); curves of every training; the worst mistakes, which are your
own pictures.

weights/kinds.csv or --training-data lists the kinds that a detector has seen, one to a line
detector,generator, where generator is the name of a test set and detector may also be the
fingerprint of its training data. To leave one generator out, train without it and name both
detectors; benchmarks/leave_one_out.py trains and tests without each generator in turn:

    cp -rl dataset/ without/ && rm -r without/*/fake/stylegan
    python train_meso.py --data without/ --output weights/meso4-without-stylegan

--record writes the mean AUC on unseen kinds, and what was called fake of each test set, into the
detector.json and the model card of each detector that was trained here; the page and records of
scoring show it. dataset/reported, of mark_wrong.py, is a test set too.

If it was stopped, run the same command again: every score is kept in <output>/scores.sqlite.
Exit codes: 0 all done; 1 something was broken and left out; 2 wrong use; 130 Ctrl-C.
"""

import argparse
import sys
from pathlib import Path

from pipeline.common.command_line import positive_int, run, script_parser, whole_number
from pipeline.detectors.fake_class import add_option


def get_args_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("detectors", nargs="+", type=Path, metavar="DETECTOR")
    add("--data", nargs="+", type=Path, required=True, metavar="TEST")
    add("--output", type=Path, default=Path("reports"), metavar="DIR", help="(%(default)s)")
    add(
        "--sample", type=positive_int, metavar="N", help="use only N pictures of each class and set"
    )
    add(
        "--grid-sample",
        type=whole_number,
        default=100,
        metavar="N",
        help="how many of them to degrade for the robustness tables (%(default)s; 0: none)",
    )
    add(
        "--training-data",
        type=Path,
        metavar="FILE.csv",
        help="which kinds each detector has seen (weights/kinds.csv)",
    )
    add("--record", action="store_true", help="write what was measured into the detectors")
    add_option(parser, "DETECTOR")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def main() -> int:
    args = get_args_parser().parse_args()

    from pipeline.comparison.comparison import compare  # these need seconds to import
    from pipeline.comparison.entries import find, read_training_data
    from pipeline.comparison.figures import draw_all
    from pipeline.comparison.record import record_sets, record_unseen
    from pipeline.comparison.report import summary_table, write_report
    from pipeline.comparison.scores import score

    inputs = find(args.detectors, args.data, args.sample, args.grid_sample, args.fake_labels)
    for sentence in inputs.skipped + inputs.failed:
        print(sentence, file=sys.stderr)
    training_data = read_training_data(args.training_data, inputs.entries)
    scores = score(inputs, args.output / "scores.sqlite", args.device)
    for path, sentence in scores.unreadable.items():
        print(f"{path}: {sentence}", file=sys.stderr)
    print("Measuring speed, drawing intervals and figures…", file=sys.stderr)
    results = compare(inputs, scores, training_data, args.device)
    figures = draw_all(inputs, scores, results, args.output / "figures")
    write_report(args.output, results, figures)
    print(summary_table(results))
    if args.record:
        for record in (record_unseen, record_sets):
            for sentence in record(inputs, scores, training_data, args.detectors):
                print(sentence, file=sys.stderr)
    print(f"The whole report: {args.output / 'index.html'}", file=sys.stderr)
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    run(main, after_stop="The same command goes on from there.")
