"""What people write themselves, to be timed beside our scripts; each is a program of its own.

    python benchmarks/rivals.py keras-loop PICTURES            the two student projects' way
    python benchmarks/rivals.py transformers PICTURES          Hugging Face's pipeline, ViT-Base
    python benchmarks/rivals.py one-by-one PICTURES NETWORK    the network's own library, plainly
    python benchmarks/rivals.py batches PICTURES NETWORK       the same in batches of 32
    python benchmarks/rivals.py whole-photos PICTURES          Meso4 with a face search: decoded
                                                               whole, searched whole, one by one
    python benchmarks/rivals.py decoding PICTURES              nothing but decoding: the floor

Networks have random weights, which take as long as trained ones, but for Meso4 in keras-loop and
whole-photos.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from benchmarks.measuring import ROOT
from models import ARCHITECTURES, Architecture


def keras_loop(pictures: list[Path]) -> None:
    network = ARCHITECTURES["meso4"].build()
    network.load_weights(ROOT / "weights" / "meso4" / "model.weights.h5")
    for path in pictures:
        image = Image.open(path).convert("RGB").resize((256, 256))
        network.predict(np.asarray(image, np.float32)[None] / 255, verbose=0)


def transformers(pictures: list[Path]) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

    network = ViTForImageClassification(ViTConfig(num_labels=2)).eval()
    classify = pipeline("image-classification", model=network, image_processor=ViTImageProcessor())
    for path in pictures:
        classify(str(path))


def one_by_one(pictures: list[Path], network: str) -> None:
    _in_batches(pictures, network, 1)


def batches(pictures: list[Path], network: str) -> None:
    _in_batches(pictures, network, 32)


def whole_photos(pictures: list[Path]) -> None:
    from pipeline.detectors.detector import load_detector
    from pipeline.detectors.runtime import Runtime
    from pipeline.photos.faces import FaceFinder, crop_region, face_regions
    from pipeline.photos.images import read_image, resize

    detector = load_detector(ROOT / "weights" / "meso4")
    runtime, finder = Runtime.of(detector, "cpu"), FaceFinder(longest_side=100_000)
    for path in pictures:
        image = read_image(path)
        for region in face_regions(image, finder, "auto", detector.margin):
            pixels = resize(crop_region(image, region), 256, detector.resize_filter)
            runtime.logits(pixels[None])


def decoding(pictures: list[Path]) -> None:
    for path in pictures:
        Image.open(path).load()


def _in_batches(pictures: list[Path], name: str, size: int) -> None:
    architecture = ARCHITECTURES[name]
    network = architecture.build()
    batches = (pictures[first : first + size] for first in range(0, len(pictures), size))
    if architecture.framework == "keras":
        for batch in batches:
            network.predict_on_batch(_inputs(batch, architecture))
        return

    import torch

    network.eval()
    with torch.inference_mode():
        for batch in batches:
            network(torch.from_numpy(_inputs(batch, architecture)).permute(0, 3, 1, 2)).numpy()


def _inputs(pictures: list[Path], architecture: Architecture) -> np.ndarray:
    """(N, size, size, 3) float32, as the network is fed."""
    side = architecture.input_size
    images = [Image.open(path).convert("RGB").resize((side, side)) for path in pictures]
    return np.stack([architecture.scaling(np.asarray(image)) for image in images])


PROGRAMS = {
    "keras-loop": keras_loop,
    "transformers": transformers,
    "one-by-one": one_by_one,
    "batches": batches,
    "whole-photos": whole_photos,
    "decoding": decoding,
}

if __name__ == "__main__":
    name, folder, *rest = sys.argv[1:]
    PROGRAMS[name](sorted(Path(folder).iterdir()), *rest)
