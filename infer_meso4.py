"""Tell real faces from deepfakes with Meso4.

    python infer_meso4.py photos/                        a folder and its sub-folders
    python infer_meso4.py face.jpg --face none           a picture that is a face crop already
    python infer_meso4.py clip.mp4                       32 frames of it; or --every SECONDS
    python infer_meso4.py photos/ --output rows.csv      or .jsonl, .parquet
    python infer_meso4.py photos/ --output report.html   a page for the browser
    python infer_meso4.py photos/ --output rows.csv --continue
    python infer_meso4.py photos/ --explain why/         with a heat map of each face
    find . -name '*.jpg' | python infer_meso4.py -

Each face gets a row with its position, a fake_probability (calibrated, 0…1) and a verdict: `fake`
at or above the detector's threshold, `real` where hardly any fake scores that low, `uncertain` in
between. A photo without a face gets `no face`, an unreadable one `error`; the others are scored. A
video gets a row for each face in each frame (`time`, in seconds) and rows that summarise each face
and the whole video: the mean as fake_probability, `median`, and `fake_share`, the share of frames
called fake.
Exit codes: 0 all scored; 1 some photos could not be read; 2 wrong use or no weights; 130 Ctrl-C.

The detector is weights/meso4, trained by train_meso.py on StyleGAN and Stable Diffusion portraits
and DFDC face swaps; its README.md says how good it is and what it cannot see. MesoNet's published
weights work too (--weights weights/Meso4_DF.h5, see download_weights.py). They score whole
pictures, as their authors did, and find few of today's fakes.
"""

from pipeline.common.command_line import run
from pipeline.scoring.opening import Network
from pipeline.scoring.scoring_command import HOW_TO_GO_ON, score_photos, scoring_parser

MESO4 = Network(("meso4",), training="train_meso.py --data dataset/")


def main() -> int:
    args = scoring_parser(__doc__, MESO4).parse_args()
    return score_photos(args, MESO4)


if __name__ == "__main__":
    run(main, HOW_TO_GO_ON)
