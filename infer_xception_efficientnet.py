"""Tell real faces from deepfakes with two networks at once, Xception and EfficientNet.

    python infer_xception_efficientnet.py photos/                    a folder and its sub-folders
    python infer_xception_efficientnet.py face.jpg --face none       a face crop
    python infer_xception_efficientnet.py clip.mp4                   32 frames of it
    python infer_xception_efficientnet.py photos/ --output rows.csv  or .jsonl, .parquet
    python infer_xception_efficientnet.py photos/ --output page.html  for the browser
    python infer_xception_efficientnet.py photos/ --output rows.csv --continue
    python infer_xception_efficientnet.py photos/ --explain why/     with a heat map of each face
    python infer_xception_efficientnet.py photos/ --weights DIR --weights OTHER_DIR
    find . -name '*.jpg' | python infer_xception_efficientnet.py -

Each photo is decoded and searched for faces once. Each face gets two consecutive rows, one for each
network (`model`), with its position, a fake_probability (calibrated, 0…1) and a verdict: `fake` at
or above the detector's threshold, `real` where hardly any fake scores that low, `uncertain` in
between. The last column, `agreement`, is true where both verdicts are the same and false where they
differ; `uncertain` is a verdict like the others and agrees only with `uncertain`. Where the
networks disagree, look for yourself. The table shows both verdicts on a face in one line.

A photo without a face (`no face`) or one that cannot be read (`error`; the others are scored) has
one row instead of two, with `model` and `agreement` empty, because no network has seen it.

The detectors are weights/xception and weights/efficientnet_lite0, or efficientnet_b0 if that is the
only one there; the first line says which. If one is missing, the other scores alone: the columns
stay, and `agreement` is empty. --weights names a detector of either network to score alone; given
twice, it names both. --threshold applies to both. If one detector was trained on whole pictures and
the other on faces, each looks at its own and nothing is compared, unless --face says how both are
to look.
Exit codes: 0 all scored; 1 some photos could not be read; 2 wrong use or no weights; 130 Ctrl-C.
"""

from pipeline.common.command_line import run
from pipeline.scoring.opening import Network
from pipeline.scoring.scoring_command import HOW_TO_GO_ON, score_photos, scoring_parser

XCEPTION = Network(("xception",), training="train_xception.py --data dataset/")
EFFICIENTNET = Network(
    ("efficientnet_lite0", "efficientnet_b0"),
    training="train_efficientnet.py --architecture efficientnet_lite0 --data dataset/",
)


def main() -> int:
    args = scoring_parser(__doc__, XCEPTION, EFFICIENTNET).parse_args()
    return score_photos(args, XCEPTION, EFFICIENTNET)


if __name__ == "__main__":
    run(main, HOW_TO_GO_ON)
