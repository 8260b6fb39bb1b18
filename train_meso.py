"""Train Meso4 or MesoInception4 on folders of real and fake faces.

    python train_meso.py --data dataset/                         → weights/meso4/
    python train_meso.py --data dataset/ --architecture mesoinception4
    python train_meso.py --data dataset/ --resume                after Ctrl-C, kill -9, a power cut
    python train_meso.py --data dataset/ --show-augmentation sheet.png

The dataset is train|validate/real|fake (prepare_dataset.py makes one). It is audited first;
unreadable pictures are named and left out. Training stops when the validation AUC no longer rises;
the weights of the best epoch are calibrated, exported and written to the detector folder that
infer_meso4.py and infer_mesoinception4.py score with. Until then <output>.run/ holds the training's
state, history.jsonl and the TensorBoard logs.

What to expect: with 7,000 faces an epoch takes a minute on two idle cores with Meso4, three with
MesoInception4. From the published weights (--init weights/Meso4_DF.h5), on StyleGAN, Stable
Diffusion and DFDC fakes, Meso4 reached a validation AUC of 0.79 in 14 epochs and of 0.835 in 37
more, MesoInception4 0.81 in 16. From scratch, nothing happens for several epochs.
"""

from pipeline.common.command_line import run
from pipeline.feeding.augmentation import Augmentation
from pipeline.training.recipes import KERAS
from pipeline.training.training_arguments import training_arguments

RECIPE = {
    **KERAS,
    "init": "none",
    "epochs": 40,
    "learning_rate": 1e-3,
    "patience": 12,
    "dropout": 0.0,
    "precision": "fp32",
    # Lighter than the default: networks of 28,000 parameters learn little from worse pictures.
    "augmentation": Augmentation(
        crop=0.4, rescale=0.1, blur=0.03, noise=0.03, brightness=0.3, jpeg=0.2, webp=0.02
    ),
}


def main() -> None:
    args = training_arguments(__doc__, {"meso4": RECIPE, "mesoinception4": RECIPE})

    from pipeline.training.training import train_detector  # what it needs takes seconds to import

    train_detector(args)


if __name__ == "__main__":
    run(main, after_stop="The same command with --resume goes on from the last whole epoch.")
