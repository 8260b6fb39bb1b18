"""Train Xception on folders of real and fake faces.

    python train_xception.py --data dataset/                  → weights/xception/
    python train_xception.py --data dataset/ --resume         after Ctrl-C, kill -9, a power cut
    python train_xception.py --data dataset/ --init weights/xception --head-epochs 0    go on
    python train_xception.py --data dataset/ --init none --learning-rate 1e-3 --epochs 40
    torchrun --nproc-per-node 4 train_xception.py --data dataset/    a process on each of four GPUs

It starts from weights trained on ImageNet, which Keras downloads once (84 MB). For --head-epochs
only the new head is trained, then the whole network at a tenth of the rate, but with ImageNet's
batch normalization; both rates follow a cosine. From scratch (--init none) there is nothing to
preserve: the whole network is trained from the first epoch, with its own batch normalization, and
needs a higher rate and more epochs. The dataset and the output are as in train_meso.py.

What to expect: 5 images a second and 10 GB of memory on two CPU cores, so an epoch of 7,000 faces
takes 25 minutes, less while only the head is trained; 7 images a second with --precision bf16 where
the processor has bfloat16. Several GPUs in one machine share each step: automatically in a single
process, or with one process for each GPU under torchrun.
"""

from pipeline.common.command_line import run
from pipeline.training.recipes import KERAS
from pipeline.training.training_arguments import training_arguments

RECIPE = {
    **KERAS,
    "resolution": None,
    "epochs": 10,
    "head_epochs": 2,
    "head_learning_rate": 1e-3,
    "learning_rate": 1e-4,
    "patience": 4,
    "dropout": 0.5,
}


def main() -> None:
    args = training_arguments(__doc__, {"xception": RECIPE})

    from pipeline.training.training import train_detector  # what it needs takes seconds to import

    train_detector(args)


if __name__ == "__main__":
    run(main, after_stop="The same command with --resume goes on from the last whole epoch.")
