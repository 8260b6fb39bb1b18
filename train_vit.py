"""Train a vision transformer on folders of real and fake faces: the whole network, or a small part.

    python train_vit.py --data dataset/                       → weights/vit/ (ViT-B/16)
    python train_vit.py --data dataset/ --tuning lora         trains 0.7 % of the parameters
    python train_vit.py --data dataset/ --tuning norm         only the layer norms
    python train_vit.py --data dataset/ --tuning probe        only the head, in minutes
    python train_vit.py --data dataset/ --architecture vit_clip         CLIP's, as the shipped one
    python train_vit.py --data dataset/ --architecture vit_tiny_patch16_224
    python train_vit.py --data dataset/ --resume              after Ctrl-C, kill -9, a power cut
    torchrun --nproc-per-node 4 train_vit.py --data dataset/  on four GPUs

It starts from weights trained on ImageNet, which are downloaded once (--init imagenet). Without
internet access, it can start from a file (--init model.safetensors), a detector or Hugging Face
folder, or from scratch (--init none). vit_clip starts from CLIP's weights (--init clip), which are
on the hub and, without it, in a Python package (--init packaged). The dataset and the output are as
in train_meso.py.

Recipe: AdamW, layer-wise learning-rate decay as in BEiT and MAE, cosine after a warm-up, a moving
average of the weights. What to expect on two CPU cores, in images a second: ViT-B 1.4 (4.2 where
the processor has bfloat16), ViT-Ti 19 (33); on a GPU, minutes rather than days. A probe sees each
picture --epochs times, first as it is, then changed at random, and fits the head to all of them.
"""

from dataclasses import replace

from models import ARCHITECTURES
from pipeline.common.command_line import run
from pipeline.feeding.augmentation import NO_AUGMENTATION
from pipeline.training.recipes import TORCH
from pipeline.training.training_arguments import training_arguments

RECIPE = {
    **TORCH,
    "epochs": 8,
    "gradient_accumulation": 2,
    "learning_rate": 2e-4,
    "layer_decay": 0.75,
}
# What CLIP has learned is worth keeping: only its layer norms learn, from pictures among which
# neither size nor compression tells real from fake. A third of them stay as they are: without any,
# fewer fakes were found in unchanged photos.
CLIP_RECIPE = {
    **TORCH,
    "init": "clip",
    "blocks": dict(ARCHITECTURES["vit_clip"].options)["blocks"],
    "tuning": "norm",
    "epochs": 2,
    "learning_rate": 5e-4,
    "weight_decay": 0.01,
    "ema": 0.995,
    "balance": "generator",
    "alike": "group",
    "self_blended": 0.1,
    "augmentation": replace(NO_AUGMENTATION, flip=0.5, brightness=0.3, margin=0.7, resave=0.67),
}
RECIPES = {
    **dict.fromkeys(("vit", "vit_small_patch16_224", "vit_tiny_patch16_224"), RECIPE),
    "vit_clip": CLIP_RECIPE,
}


def main() -> None:
    args = training_arguments(__doc__, RECIPES)

    from pipeline.training.training import train_detector  # what it needs takes seconds to import

    train_detector(args)


if __name__ == "__main__":
    run(main, after_stop="The same command with --resume goes on from the last checkpoint.")
