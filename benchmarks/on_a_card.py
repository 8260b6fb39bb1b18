"""Train ResNet50 and Xception on an NVIDIA card, in minutes.

    python benchmarks/on_a_card.py resnet50 --data faces.csv --minutes 9 --output card/
    python benchmarks/on_a_card.py resnet50 xception --data faces.csv --minutes 7 \\
        --starts starts/ --output card/

What train_<model>.py takes days for on two cores, for a card that is lent for minutes: worker
processes change the pictures, the card does the rest in bfloat16, and the learning rate falls as a
cosine of the time that has passed. Several networks share one card, each in its own process.

The pictures are small at first, in turn shrunk and cut out at their own size, where the traces of
forgery are. Half of each label is the opinion of the shipped ViT, but of self-blended fakes, which
are not its own kind; and what the network has before its last layers has to tell, through one more
layer, the features that the ViT sees in the same picture. They start from DIR/NETWORK.safetensors
of --starts, or from scratch. In OUTPUT/NETWORK/ are log.jsonl and, written several times,
weights.safetensors, the moving average of the weights, from which train_resnet50.py goes on
(--init). Xception is trained as a twin in torch: see torch_xception.py.
"""

import argparse
import copy
import math
import multiprocessing
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # forked workers would wait for threads that they do not have
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.measuring import ROOT, note
from benchmarks.torch_xception import Xception
from models import ARCHITECTURES, Architecture
from pipeline.common.command_line import positive_float, positive_int, run
from pipeline.common.errors import UserError
from pipeline.common.processor import has_nvidia_card
from pipeline.data.dataset import Sample, load_dataset
from pipeline.detectors.detector import GRAPH, load_detector
from pipeline.evaluation.metrics import auc
from pipeline.feeding.augmentation import Augmentation, augment
from pipeline.feeding.face_places import FacePlaces
from pipeline.feeding.sampling import source_of
from pipeline.feeding.self_blending import SelfBlender
from pipeline.photos.images import read_image, resize
from pipeline.torch_engine.weights import read_graph

TEACHER = "vit"
TEACHERS_SHARE = 0.5  # of a label
TOLD = (2, 6, 10, 11)  # of what its head sees: class tokens of blocks 8, 10, 12, mean of patches
LAST_LAYERS = {"resnet50": "fc", "xception": "head_dense"}
RATES = {"resnet50": 7e-4, "xception": 3e-4}
CHANGES = Augmentation(
    crop=0.7, smallest_crop=0.6, rescale=0.2, jpeg=0.4, soften=0.15, sharpen=0.1, screenshot=0.1,
    margin=0.4, resave=0.3,
)  # fmt: skip
SELF_BLENDED = 0.12  # of the pictures
# Sides of the pictures, each until this share of the time; None: the network's own.
FROM_SCRATCH = ((0.45, 128), (0.7, 176), (1.0, None))
GOING_ON = ((0.3, 176), (1.0, None))
AVERAGE = 0.9985  # decay of the weights' moving average, a step

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Faces(IterableDataset):
    """Endless batches of changed pictures: (N, size, size, 3) uint8, labels (N, 1), and (N, 1) 1
    where no teacher is asked. Rare sources come more often than they are, but not as often as the
    large ones; of a forgery whose original is there, both come, changed alike, half of the time."""

    def __init__(self, samples: list[Sample], batch: int, seed: int):
        self.samples, self.size, self._batch, self._seed = samples, 224, batch, seed
        self.pictures = decoded(samples)
        self.places, self.blender = FacePlaces(), SelfBlender(self.size)
        with ThreadPoolExecutor() as pool:  # once, and not in each worker
            list(pool.map(self._find, range(len(samples))))
        counts = Counter((sample.label, source_of(sample)) for sample in samples)
        often = np.array([counts[sample.label, source_of(sample)] ** -0.5 for sample in samples])
        labels = np.array([sample.label for sample in samples])
        self._chances = [often * (labels == label) for label in (0, 1)]
        self._chances = [chances / chances.sum() for chances in self._chances]
        self._partners = defaultdict(list)
        for index, sample in enumerate(samples):
            if sample.group:
                self._partners[sample.group, sample.label].append(index)

    def of_size(self, size: int) -> "Faces":
        """The same pictures, which are not decoded again."""
        other = copy.copy(self)
        other.size = size
        return other

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        random = np.random.default_rng((self._seed, worker.id if worker else 0))
        while True:
            views = []
            while len(views) < self._batch:
                views += self._drawn(random)
            pixels, labels, own = zip(*views[: self._batch], strict=True)
            yield (
                torch.from_numpy(np.stack(pixels)),
                torch.tensor(labels, dtype=torch.float32)[:, None],
                torch.tensor(own, dtype=torch.float32)[:, None],
            )

    def _find(self, index: int) -> None:
        path, picture = self.samples[index].path, self.pictures[index]
        self.places(path, picture)
        self.blender.forge(path, picture, np.random.default_rng(0))

    def _drawn(self, random: np.random.Generator) -> list[tuple[np.ndarray, int, int]]:
        if random.random() < SELF_BLENDED:
            index = random.choice(len(self.samples), p=self._chances[0])
            path, picture = self.samples[index].path, self.pictures[index]
            forged = self.blender.forge(path, picture, random)
            return [(self._changed(index, forged, random), 1, 1)]
        label = int(random.random() < 0.5)
        chosen = [random.choice(len(self.samples), p=self._chances[label])]
        others = self._partners[self.samples[chosen[0]].group, 1 - label]
        if others and random.random() < 0.5:
            chosen.append(random.choice(others))
        seed = random.integers(1 << 62)
        views = []
        for index in chosen:
            random, picture = np.random.default_rng(seed), self.pictures[index]
            if random.random() < SELF_BLENDED:
                picture = self.blender.alter(picture, random)
            views.append((self._changed(index, picture, random), self.samples[index].label, 0))
        return views

    def _changed(self, index: int, picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
        face = self.places(self.samples[index].path, picture)
        return augment(picture, self.size, "area", CHANGES, random, face)


class FromPixels(nn.Module):
    """A network that takes (N, side, side, 3) uint8 of any side, and brings it to `to` pixels."""

    def __init__(self, network: nn.Module, architecture: Architecture, device: str):
        super().__init__()
        self.network = network.to(device, memory_format=torch.channels_last)
        self.architecture, scaling = architecture, architecture.scaling
        self._mean, self._std = (
            torch.tensor(of, device=device) for of in (scaling.mean, scaling.std)
        )

    def forward(self, pixels: torch.Tensor, to: int | None = None) -> torch.Tensor:
        x = ((pixels.float() - self._mean) / self._std).permute(0, 3, 1, 2)
        if to and to != x.shape[-1]:
            x = functional.interpolate(x, to, mode="bilinear", antialias=True)
        return self.network(x.contiguous(memory_format=torch.channels_last))


class Teacher:
    """The calibrated probabilities of the recommended network, (N, 1), and what it sees."""

    def __init__(self, weights: Path, device: str):
        detector = load_detector(weights / TEACHER)
        network = detector.architecture.build()
        network.load_state_dict(read_graph(detector.folder / GRAPH))
        whole = FromPixels(network, detector.architecture, device).eval().requires_grad_(False)
        self._network, self._temperature = whole, detector.calibration.temperature
        network.head.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self._seen = inputs[0]

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities (N, 1), and (N, told, 768) of mean 0 and variance 1."""
        logits = self._network(pixels, self._network.architecture.input_size).float()
        seen = self._seen.float()[:, TOLD]
        return torch.sigmoid(logits / self._temperature), functional.layer_norm(
            seen, seen.shape[-1:]
        )


class Telling(nn.Module):
    """What a layer is given → the teacher's features, (N, told, 768)."""

    def __init__(self, layer: nn.Linear, device: str):
        super().__init__()
        self.linear = nn.Linear(layer.in_features, len(TOLD) * 768).to(device)
        layer.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self._given = inputs[0]

    def forward(self) -> torch.Tensor:
        return self.linear(self._given).unflatten(1, (len(TOLD), 768))


def decoded(samples: list[Sample]) -> list[np.ndarray]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda sample: read_image(sample.path), samples))


def build(name: str, device: str, starts: Path | None) -> FromPixels:
    architecture = ARCHITECTURES[name]
    network = Xception() if name == "xception" else architecture.build()
    if starts and (start := starts / f"{name}.safetensors").exists():
        network.load_state_dict({key: value.float() for key, value in load_file(start).items()})
    return FromPixels(network, architecture, device)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, step: int | None = None) -> None:
    """Move the average towards the network, as after this step; without one, all the way."""
    share = 1.0 if step is None else 1 - min(AVERAGE, (1 + step) / (10 + step))
    pairs = ([*each.parameters(), *each.buffers()] for each in (average, network))
    for kept, value in zip(*pairs, strict=True):
        if kept.is_floating_point():
            kept.lerp_(value.to(kept.dtype), share)
        else:
            kept.copy_(value)


@torch.no_grad()
def validation_auc(student: FromPixels, samples: list[Sample], device: str) -> float:
    student.eval()
    size, logits = student.architecture.input_size, []
    pictures = [resize(picture, size, "area") for picture in decoded(samples)]
    for first in range(0, len(pictures), 128):
        pixels = torch.from_numpy(np.stack(pictures[first : first + 128])).to(device)
        with torch.autocast(device, torch.bfloat16):
            logits.append(student(pixels).float().cpu().numpy()[:, 0])
    return float(auc(np.array([sample.label for sample in samples]), np.concatenate(logits)))


def save(network: FromPixels, output: Path) -> None:
    """In 16 bits but for what has one axis or none."""
    state = {
        name: (value.half() if value.ndim > 1 else value).contiguous()
        for name, value in network.network.state_dict().items()
    }
    save_file(state, output / "new.safetensors")
    (output / "new.safetensors").replace(output / "weights.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("networks", nargs="+", choices=LAST_LAYERS)
    add("--data", type=Path, required=True, metavar="FACES")
    add("--minutes", type=positive_float, required=True)
    add("--output", type=Path, required=True, metavar="DIR")
    add("--starts", type=Path, metavar="DIR", help="weights to go on from; default: from scratch")
    add("--weights", type=Path, default=ROOT / "weights", metavar="DIR", help="of the teacher")
    add("--batch-size", type=positive_int, default=128)
    add("--workers", type=positive_int, default=max(1, (os.cpu_count() or 2) - 2))
    add("--seed", type=int, default=0)
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    args = parser.parse_args()
    if args.device == "cuda" and not has_nvidia_card():
        raise UserError("There is no NVIDIA card here, or no driver for it.")
    cv2.setNumThreads(1)  # before any is started: forked processes would wait for them
    dataset = load_dataset(args.data)
    faces = Faces(dataset.train, args.batch_size, args.seed)
    args.workers = max(1, args.workers // len(args.networks))
    fork, jobs = multiprocessing.get_context("fork"), []
    for name in args.networks:
        (args.output / name).mkdir(parents=True, exist_ok=True)
        jobs.append(fork.Process(target=train, args=(name, faces, dataset.validate, args)))
        jobs[-1].start()
    for job in jobs:
        job.join()
    if any(job.exitcode for job in jobs):
        raise UserError("A training failed; what it saved until then is kept.")


def train(name: str, faces: Faces, validate: list[Sample], args: argparse.Namespace) -> None:
    """Until the minutes are over; saves the average and notes the loss eight times."""
    output, device = args.output / name, args.device
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    student, average = (build(name, device, args.starts) for _ in range(2))
    follow(average.requires_grad_(False).network, student.network)
    loader = DataLoader(
        faces.of_size(student.architecture.input_size),
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=3,
        pin_memory=device == "cuda",
        multiprocessing_context="fork",
    )
    teacher = Teacher(args.weights, device)
    telling = Telling(student.network.get_submodule(LAST_LAYERS[name]), device)
    learning = [*student.network.parameters(), *telling.parameters()]
    groups = [
        {"params": [value for value in learning if value.ndim > 1], "weight_decay": 0.05},
        {"params": [value for value in learning if value.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATES[name], betas=(0.9, 0.99))
    sides = GOING_ON if args.starts else FROM_SCRATCH
    began, noted, seen, losses = time.perf_counter(), 0.0, 0, []
    for step, batch in enumerate(loader):
        done = (time.perf_counter() - began) / (60 * args.minutes)
        if done >= 1:
            break
        pixels, labels, own = (each.to(device, non_blocking=True) for each in batch)
        rate = RATES[name] * max(0.003, 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 200)
        student.train()
        side = next(side for until, side in sides if done < until)
        with torch.autocast(device, torch.bfloat16):
            opinions, features = teacher(pixels)
            share = TEACHERS_SHARE * (1 - own)
            labels = (1 - share) * labels + share * opinions
            if side and step % 2:
                top, left = np.random.randint(0, pixels.shape[1] - side + 1, 2)
                pixels = pixels[:, top : top + side, left : left + side]
            logits, told = student(pixels, side), telling()
        error = functional.binary_cross_entropy_with_logits(logits.float(), labels)
        told = functional.mse_loss(told.float(), features)
        optimizer.zero_grad(set_to_none=True)
        (error + told).backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        follow(average.network, student.network, step)
        seen += len(pixels)
        losses.append(torch.stack([error.detach(), told.detach()]))
        if done >= noted + 0.125:
            noted, (loss, missed) = done, torch.stack(losses).mean(0).tolist()
            note(output, done=round(done, 3), pictures=seen, loss=loss, features=missed)
            losses.clear()
            save(average, output)
    save(average, output)
    note(output, pictures=seen, auc=validation_auc(average, validate, device))


if __name__ == "__main__":
    run(main)
