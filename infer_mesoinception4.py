"""Tell real faces from deepfakes with MesoInception4.

    python infer_mesoinception4.py photos/               a folder, with all its sub-folders
    python infer_mesoinception4.py face.jpg --face none  a picture that is nothing but a face
    python infer_mesoinception4.py photos/ --output rows.csv      or .jsonl, .parquet
    python infer_mesoinception4.py photos/ --output rows.csv --continue

Rows, verdicts and exit codes are those of infer_meso4.py.

The detector is weights/mesoinception4, which train_meso.py --architecture mesoinception4 writes.
MesoNet's published weights work too (--weights weights/MesoInception_DF.h5, see
download_weights.py): whole pictures, as their authors scored them, and they find few of today's
fakes.
"""

from pathlib import Path

from pipeline.commands import run, score_photos, scoring_parser

WEIGHTS = Path(__file__).resolve().parent / "weights" / "mesoinception4"


def main() -> int:
    args = scoring_parser(__doc__, default_weights=WEIGHTS).parse_args()
    return score_photos(args, architecture="mesoinception4")


if __name__ == "__main__":
    run(main, after_stop="With --output and --continue the next run goes on from here.")
