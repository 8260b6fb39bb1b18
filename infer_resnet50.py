"""Tell real faces from deepfakes with ResNet50.

    python infer_resnet50.py photos/                        a folder and its sub-folders
    python infer_resnet50.py face.jpg --face none           a picture that is a face crop already
    python infer_resnet50.py clip.mp4                       32 frames of it; or --every SECONDS
    python infer_resnet50.py photos/ --output rows.csv      or .jsonl, .parquet
    python infer_resnet50.py photos/ --output report.html   a page for the browser
    python infer_resnet50.py photos/ --output rows.csv --continue
    python infer_resnet50.py photos/ --explain why/         with a heat map of each face
    find . -name '*.jpg' | python infer_resnet50.py -

Rows, verdicts and exit codes are those of infer_meso4.py.

The detector is weights/resnet50, which train_resnet50.py writes. The shipped one is weak, a start
to go on from (docs/networks.md): infer_vit.py finds far more. However it was tuned, scoring runs a
single exported graph: a LoRA adapter costs nothing here, and neither torch nor timm is needed. On
two cores it scores about 30 faces a second.
"""

from pipeline.common.command_line import run
from pipeline.scoring.opening import Network
from pipeline.scoring.scoring_command import HOW_TO_GO_ON, score_photos, scoring_parser

RESNET50 = Network(("resnet50",), training="train_resnet50.py --data dataset/")


def main() -> int:
    args = scoring_parser(__doc__, RESNET50).parse_args()
    return score_photos(args, RESNET50)


if __name__ == "__main__":
    run(main, HOW_TO_GO_ON)
