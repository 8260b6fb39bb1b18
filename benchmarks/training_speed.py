"""Time training against what else people write, on the same pictures and network.

    python benchmarks/training_speed.py [--pictures 600] [--output FILE.json]

meso4 is trained by train_meso.py and by the two student projects' way, Keras' ImageDataGenerator
and fit; efficientnet_lite0 by train_efficientnet.py and by a plain torch loop over torchvision's
ImageFolder and DataLoader. Both start from scratch, in batches of 16, with each side's own
augmentation (ours does more: crops, scaling, JPEG, blur, noise). Counted is the second epoch, with
its validation. Pictures are made from the sample photos. Prints a Markdown table.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.made_photos import make_crops
from benchmarks.measuring import ROOT, machine, measure
from models import ARCHITECTURES
from pipeline.common.command_line import positive_int, run
from pipeline.common.files import atomic_write

BATCH = 16
EPOCHS = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=positive_int, default=600, help="to train on")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "training_speed.json")
    parser.add_argument("--rival", choices=RIVALS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rival:
        print(RIVALS[args.rival](args.data))
        return
    result = machine() | {"pictures": args.pictures, "networks": {}}
    with tempfile.TemporaryDirectory() as folder:
        data = make_dataset(Path(folder) / "faces", args.pictures)
        for name, script in SCRIPTS.items():
            ours = of_our_script(script, data, Path(folder) / name)
            rival = [sys.executable, __file__, "--rival", name, "--data", data]
            theirs = float(measure(rival).output.split()[-1])
            result["networks"][name] = {
                "ours_images_per_second": args.pictures / ours,
                "rival": RIVAL_NAMES[name],
                "rival_images_per_second": args.pictures / theirs,
                "times_as_fast": theirs / ours,
            }
    print(table(result))
    with atomic_write(args.output) as file:
        json.dump(result, file, indent=1)


def table(result: dict) -> str:
    """The figures as a Markdown table."""
    lines = ["| training | our script | others | times as fast |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['ours_images_per_second']:.1f} images/s | {row['rival']}: "
        f"{row['rival_images_per_second']:.1f} images/s | {row['times_as_fast']:.1f} |"
        for name, row in result["networks"].items()
    ]
    return "\n".join([*lines, ""])


def make_dataset(folder: Path, pictures: int) -> Path:
    """train|validate/real|fake, with a fourth as many to validate; the labels mean nothing."""
    crops = sorted(make_crops(folder.with_name("crops"), pictures + pictures // 4).iterdir())
    for number, crop in enumerate(crops):
        split = "train" if number < pictures else "validate"
        target = folder / split / ("real", "fake")[number % 2]
        target.mkdir(parents=True, exist_ok=True)
        crop.rename(target / crop.name)
    return folder


def of_our_script(script: list[str], data: Path, output: Path) -> float:
    """Seconds of the last epoch."""
    options = ["--init", "none", "--epochs", EPOCHS, "--batch-size", BATCH]
    measure([sys.executable, *script, "--data", data, "--output", output, *options])
    history = (output / "history.jsonl").read_text("utf-8").splitlines()
    return json.loads(history[-1])["seconds"]


def keras_generator(data: Path) -> float:
    """Seconds of the last epoch."""
    import keras
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    augmented = ImageDataGenerator(rescale=1 / 255, horizontal_flip=True, zoom_range=0.2)
    plain = ImageDataGenerator(rescale=1 / 255)
    train, validate = (
        generator.flow_from_directory(
            data / split, (256, 256), batch_size=BATCH, class_mode="binary"
        )
        for generator, split in ((augmented, "train"), (plain, "validate"))
    )
    network = ARCHITECTURES["meso4"].build()
    network.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    for _ in range(EPOCHS):
        start = time.perf_counter()
        network.fit(train, validation_data=validate, verbose=0)
    return time.perf_counter() - start


def torch_loop(data: Path) -> float:
    """Seconds of the last epoch."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as loss_of
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
    augmented = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), *to_tensor])
    plain = v2.Compose([v2.Resize((224, 224)), *to_tensor])
    train = DataLoader(ImageFolder(data / "train", augmented), BATCH, shuffle=True, num_workers=2)
    validate = DataLoader(ImageFolder(data / "validate", plain), BATCH, num_workers=2)
    network = ARCHITECTURES["efficientnet_lite0"].build()
    optimizer = torch.optim.AdamW(network.parameters())
    for _ in range(EPOCHS):
        start = time.perf_counter()
        network.train()
        for pixels, labels in train:
            optimizer.zero_grad()
            loss_of(network(pixels).flatten(), labels.float()).backward()
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            for pixels, _ in validate:
                network(pixels)
    return time.perf_counter() - start


SCRIPTS = {
    "meso4": ["train_meso.py"],
    "efficientnet_lite0": ["train_efficientnet.py", "--architecture", "efficientnet_lite0"],
}
RIVALS = {"meso4": keras_generator, "efficientnet_lite0": torch_loop}
RIVAL_NAMES = {
    "meso4": "ImageDataGenerator and fit",
    "efficientnet_lite0": "a torch loop over ImageFolder",
}


if __name__ == "__main__":
    run(main)
