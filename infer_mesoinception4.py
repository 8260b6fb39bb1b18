"""Tell real faces from deepfakes with MesoInception4.

    python infer_mesoinception4.py photos/               a folder and its sub-folders
    python infer_mesoinception4.py face.jpg --face none  a picture that is a face crop already
    python infer_mesoinception4.py clip.mp4              32 frames of it; or --every SECONDS
    python infer_mesoinception4.py photos/ --output rows.csv      or .jsonl, .parquet
    python infer_mesoinception4.py photos/ --output report.html   a page for the browser
    python infer_mesoinception4.py photos/ --output rows.csv --continue
    python infer_mesoinception4.py photos/ --explain why/  with a heat map of each face

Rows, verdicts and exit codes are those of infer_meso4.py.

The detector is weights/mesoinception4, which train_meso.py --architecture mesoinception4 writes.
MesoNet's published weights work too (--weights weights/MesoInception_DF.h5, see
download_weights.py). They score whole pictures, as their authors did, and find few of today's
fakes.
"""

from pipeline.common.command_line import run
from pipeline.scoring.opening import Network
from pipeline.scoring.scoring_command import HOW_TO_GO_ON, score_photos, scoring_parser

MESOINCEPTION4 = Network(
    ("mesoinception4",), training="train_meso.py --data dataset/ --architecture mesoinception4"
)


def main() -> int:
    args = scoring_parser(__doc__, MESOINCEPTION4).parse_args()
    return score_photos(args, MESOINCEPTION4)


if __name__ == "__main__":
    run(main, HOW_TO_GO_ON)
