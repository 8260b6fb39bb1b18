"""Tell real faces from deepfakes with a vision transformer.

    python infer_vit.py photos/                        a folder and its sub-folders
    python infer_vit.py face.jpg --face none           a picture that is a face crop already
    python infer_vit.py clip.mp4                       32 frames of it; or --every SECONDS
    python infer_vit.py photos/ --output rows.csv      or .jsonl, .parquet
    python infer_vit.py photos/ --output report.html   a page for the browser
    python infer_vit.py photos/ --output rows.csv --continue
    python infer_vit.py photos/ --explain why/         with a heat map of each face
    python infer_vit.py photos/ --together none        ViT alone, without EfficientNet-Lite0
    python infer_vit.py photos/ --weights weights/vit_tiny_patch16_224
    find . -name '*.jpg' | python infer_vit.py -

Each face gets a row with its position, a fake_probability (calibrated, 0…1) and a verdict: `fake`
at or above the detector's threshold, `real` where hardly any fake scores that low, `uncertain` in
between. A photo without a face gets `no face`, an unreadable one `error`; the others are scored.
Exit codes: 0 all scored; 1 some photos could not be read; 2 wrong use or no weights; 130 Ctrl-C.

The detector is weights/vit, which is shipped (CLIP's ViT-B/16), and with it, as one, the shipped
weights/efficientnet_lite0: the mean of both finds more than either. If weights/vit is missing, it
is vit_clip, vit_small_patch16_224 or vit_tiny_patch16_224 beside it; the first lines say what
scores. However it was tuned, scoring runs exported graphs: a LoRA adapter costs nothing here, and
neither torch nor timm is needed. On two cores ViT-B takes about a tenth of a second a face.
"""

from pipeline.common.command_line import run
from pipeline.scoring.opening import Network
from pipeline.scoring.scoring_command import HOW_TO_GO_ON, score_photos, scoring_parser

VIT = Network(
    ("vit", "vit_clip", "vit_small_patch16_224", "vit_tiny_patch16_224"),
    training="train_vit.py --data dataset/",
)


def main() -> int:
    args = scoring_parser(__doc__, VIT).parse_args()
    return score_photos(args, VIT)


if __name__ == "__main__":
    run(main, HOW_TO_GO_ON)
