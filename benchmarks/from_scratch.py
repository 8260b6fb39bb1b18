"""Do the networks learn at all, without ImageNet's weights? Train each on a few easy faces.

    python benchmarks/from_scratch.py --data FACES --output FOLDER [--networks resnet50 …]
    python benchmarks/training_curves.py FOLDER/*_scratch

FACES is a dataset as training wants it; of its pictures whose file names begin with one of the
--names, `--pictures` are trained on, and half as many validate. To make it easy, pictures are only
flipped, not degraded: such a detector is not for use. ViT-B sees few pictures, as it is slow. Each
training is a script of its own, which leaves FOLDER/NETWORK_scratch; what is there is not trained
again, and what was stopped goes on.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.forgetting import train
from benchmarks.subsets import begins_with, evenly, write_table
from pipeline.common.command_line import positive_int, run
from pipeline.data.dataset import load_dataset

FLIPS_ONLY = "crop=0,rescale=0,blur=0,noise=0,brightness=0,jpeg=0,webp=0"
TORCH = ["--ema", "0.99", "--gradient-accumulation", "1"]
VIT = ["train_vit.py", *TORCH, "--layer-decay", "1"]
NETWORKS = {
    "vit_tiny_patch16_224": [
        *VIT, "--architecture", "vit_tiny_patch16_224", "--learning-rate", "5e-4", "--epochs", "6",
    ],
    "resnet50": ["train_resnet50.py", *TORCH, "--batch-size", "16", "--epochs", "2"],
    "efficientnet_b0": ["train_efficientnet.py", "--learning-rate", "1e-3", "--epochs", "3"],
    "vit": [*VIT, "--batch-size", "2", "--learning-rate", "1e-4", "--epochs", "1"],
}  # fmt: skip
FEW = {"vit": 390}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FACES")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--names", nargs="+", default=["sd21", "ciplab", "stylegan", "ffhq"])
    parser.add_argument("--pictures", type=positive_int, default=1600)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    args = parser.parse_args()
    some = begins_with(load_dataset(args.data), args.names)
    args.output.mkdir(parents=True, exist_ok=True)
    for network in args.networks:
        folder = args.output / f"{network}_scratch"
        if folder.exists():
            continue
        pictures = min(args.pictures, FEW.get(network, args.pictures))
        table = write_table(evenly(some, pictures), args.output / f"{pictures}.csv")
        options = ["--data", table, "--init", "none", "--augmentation", FLIPS_ONLY]
        train([*NETWORKS[network], *options, "--output", folder])


if __name__ == "__main__":
    run(main)
