"""Train ResNet50 on folders of real and fake faces: the whole network, or a small part.

    python train_resnet50.py --data dataset/                  → weights/resnet50/
    python train_resnet50.py --data dataset/ --tuning lora    adapters on the convolutions
    python train_resnet50.py --data dataset/ --tuning norm    only the batch normalization
    python train_resnet50.py --data dataset/ --tuning probe   only the head
    python train_resnet50.py --data dataset/ --resume         after Ctrl-C, kill -9, a power cut
    torchrun --nproc-per-node 4 train_resnet50.py --data dataset/    on four GPUs

It starts from weights trained on ImageNet, which are downloaded once (--init imagenet). Without
internet access, it can start from a file (--init model.safetensors), a detector folder, or from
scratch (--init none). The dataset and the output are as in train_meso.py. With every tuning but the
probe, batch normalization learns the faces' statistics; they are saved with the weights and with
the adapter.

What to expect on two CPU cores: 8 images a second, 15 where the processor has bfloat16.
"""

from pipeline.common.command_line import run
from pipeline.training.recipes import TORCH
from pipeline.training.training_arguments import training_arguments

RECIPE = {**TORCH, "epochs": 10, "batch_size": 32, "learning_rate": 3e-4, "resolution": None}


def main() -> None:
    args = training_arguments(__doc__, {"resnet50": RECIPE})

    from pipeline.training.training import train_detector  # what it needs takes seconds to import

    train_detector(args)


if __name__ == "__main__":
    run(main, after_stop="The same command with --resume goes on from the last checkpoint.")
