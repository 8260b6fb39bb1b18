"""The head of CLIP's ViT on an NVIDIA card: many views, and many fits of them (see on_a_card.py).

As `train_vit.py --architecture vit_clip --tuning probe`, but worker processes change the pictures,
and all features stay on the card: of unchanged pictures first, then of changed ones, for four
fifths of the time. A share of the real pictures among the changed ones is forged (self-blended).
Then heads are fitted, for several blocks and penalties, with the forged pictures and without, and
each for all kinds of fakes and without each of them. OUTPUT/probe/log.jsonl says how well they tell
the kinds that they have not seen, in validation pictures; the best is in weights.safetensors, with
the backbone. A penalty that holds the head to where it starts makes a detector of that:

    python train_vit.py --architecture vit_clip --tuning probe --epochs 1 --weight-decay 100 \\
        --init card/probe/weights.safetensors --blocks … --data FACES
"""

import argparse
import re
import time
from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, layer_norm
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import train_vit
from benchmarks.measuring import note
from models import ARCHITECTURES
from pipeline.common.labels import FAKE, REAL
from pipeline.detectors.detector import GRAPH
from pipeline.evaluation.metrics import auc
from pipeline.feeding.augmentation import augment
from pipeline.feeding.sampling import Epochs, source_of
from pipeline.photos.images import read_image, resize
from pipeline.torch_engine.weights import read_graph

BLOCKS = tuple(range(5, 13))
VARIANTS = tuple(product((0, 1), ((5, 12), (7, 12)), (1e-3, 3e-4, 3e-3)))
FORGED = 0.12  # of the real pictures, from the second view on
CHANGES = train_vit.CLIP_RECIPE["augmentation"]


def family(kind: str) -> str:
    """The kinds that are left out together: galleries of the generators of 2025 and 2026 are one,
    and so are what their name ends in a letter for."""
    recent = ("astria", "influencer", "vovv", "seedream", "nano")
    return "of 2025" if kind.startswith(recent) else re.sub(r"_[a-z]$", "", kind)


class Views(IterableDataset):
    """Each picture once, then once more, and so on: (N, 224, 224, 3) uint8, numbers (N,), and (N,)
    1 where a real picture was forged."""

    def __init__(self, faces, batch: int):
        self._faces, self._batch = faces, batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        random, faces = np.random.default_rng((1, part)), self._faces
        order = np.random.default_rng(2).permutation(len(faces.samples))[part::parts]
        view = 0
        while True:
            for first in range(0, len(order), self._batch):
                numbers = order[first : first + self._batch]
                shown = [self._shown(number, view, random) for number in numbers]
                pixels, forged = zip(*shown, strict=True)
                yield (
                    torch.from_numpy(np.stack(pixels)),
                    torch.from_numpy(numbers),
                    torch.tensor(forged),
                )
            view += 1

    def _shown(self, number: int, view: int, random: np.random.Generator):
        faces = self._faces
        sample, picture = faces.samples[number], faces.pictures[number]
        if view == 0:
            return resize(picture, 224, "area"), 0
        forged = sample.label == REAL and random.random() < FORGED
        if forged:
            picture = faces.blender.forge(sample.path, picture, random)
        face = faces.places(sample.path, picture)
        return augment(picture, 224, "area", CHANGES, random, face), int(forged)


def backbone(args: argparse.Namespace) -> nn.Module:
    """CLIP's, out of the shipped detector, with what the blocks give in the place of logits."""
    network = ARCHITECTURES["vit_clip"].with_options(blocks=BLOCKS).build()
    state = read_graph(args.weights / "vit" / GRAPH)
    network.load_state_dict(
        {name: value for name, value in state.items() if not name.startswith("head.")}, strict=False
    )
    return network.eval().requires_grad_(False).to(args.device)


def probe(faces, validate: list, args: argparse.Namespace) -> None:
    began, output, device = time.perf_counter(), args.output / "probe", args.device
    torch.set_float32_matmul_precision("highest")
    network, scaling = backbone(args), ARCHITECTURES["vit_clip"].scaling
    mean, std = (torch.tensor(of, device=device) for of in (scaling.mean, scaling.std))
    loader = DataLoader(
        Views(faces, args.batch_size),
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=3,
        pin_memory=device == "cuda",
        multiprocessing_context="fork",
    )

    @torch.inference_mode()
    def features_of(pixels: torch.Tensor) -> torch.Tensor:
        """(N, 224, 224, 3) uint8 → (N, 16, 768) float16, as the head sees them."""
        x = ((pixels.to(device).float() - mean) / std).permute(0, 3, 1, 2)
        with torch.autocast(device, torch.bfloat16):
            features = network.features(x)
        return layer_norm(features.float(), features.shape[-1:]).half()

    pictures = np.stack([resize(read_image(each.path), 224, "area") for each in validate])
    parts = torch.from_numpy(pictures).split(64)
    judged = torch.cat([features_of(part) for part in parts])
    seen, numbers, forged = [], [], []
    for pixels, number, own in loader:
        seen.append(features_of(pixels))
        numbers.append(number)
        forged.append(own)
        if time.perf_counter() - began > 0.8 * 60 * args.minutes:
            break
    seen = torch.cat(seen)
    numbers, forged = torch.cat(numbers).numpy(), torch.cat(forged).numpy()
    labels = np.array([sample.label for sample in faces.samples])
    kinds = np.array([family(source_of(sample)) for sample in faces.samples])
    often = Epochs(faces.samples, 0.0, "generator", 0).frequencies()[: len(labels)]
    left_out = ["", *sorted(set(kinds[labels == FAKE]))]
    is_fake = np.maximum(labels[numbers], forged)
    best = 0.0
    for own, (first, last), penalty in VARIANTS:
        if time.perf_counter() - began > 60 * args.minutes:
            break
        shares = often[numbers][:, None] * np.stack(
            [kinds[numbers] != each for each in left_out], 1
        )
        shares = shares * (own | (1 - forged))[:, None]
        chosen = slice(2 * (first - BLOCKS[0]), 2 * (last + 1 - BLOCKS[0]))
        weight, bias, loss = fitted(seen[:, chosen].flatten(1), is_fake, shares, penalty, device)
        logits = (judged[:, chosen].flatten(1).float() @ weight.T + bias).cpu().numpy()
        unseen = unseen_aucs(logits, validate, left_out)
        mean = float(np.mean(list(unseen.values()) or [0.0]))
        entry = {"forged": own, "blocks": [first, last], "penalty": penalty, "loss": loss}
        note(output, **entry, views=len(numbers), unseen=unseen, mean=mean)
        if mean >= best:
            best = mean
            head = {"head.linear.weight": weight[:1], "head.linear.bias": bias[:1]}
            state = {name: value.half() for name, value in network.state_dict().items()} | head
            save_file(
                {name: each.contiguous() for name, each in state.items()},
                output / "weights.safetensors",
            )


def unseen_aucs(logits: np.ndarray, samples: list, left_out: list[str]) -> dict[str, float]:
    """Of each kind with at least ten pictures, the AUC of the fit without it (N, kinds), beside all
    real faces."""
    labels = np.array([sample.label for sample in samples])
    kinds = np.array([family(source_of(sample)) for sample in samples])
    aucs = {}
    for column, kind in enumerate(left_out):
        its = (kinds == kind) & (labels == FAKE)
        if its.sum() >= 10:
            both = its | (labels == REAL)
            aucs[kind] = float(auc(labels[both], logits[both, column]))
    return aucs


def fitted(
    features: torch.Tensor, is_fake: np.ndarray, shares: np.ndarray, penalty: float, device: str
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """pipeline.torch_engine.regression.fit, on the card: (N, D) float16, (N,) and (N, K) → (K, D)
    and (K,) in 32 bits, and the mean loss."""
    labels = torch.tensor(is_fake, dtype=torch.float32, device=device)[:, None]
    share = torch.tensor(shares / shares.sum(0), dtype=torch.float32, device=device)
    parts = [slice(first, first + 8192) for first in range(0, len(features), 8192)]
    total = sum(features[part].double().sum(0) for part in parts) / len(features)
    squares = sum(features[part].double().square().sum(0) for part in parts) / len(features)
    deviation = (squares - total.square()).clamp(min=0).sqrt()[:, None] + 1e-6
    mean = total[:, None]
    learned = torch.zeros(len(mean) + 1, share.shape[1], dtype=torch.float64, device=device)
    learned.requires_grad_(True)
    loss = 0.0

    def closure() -> torch.Tensor:
        nonlocal loss
        scaled = learned[:-1].detach() / deviation
        constant = learned[-1].detach() - (scaled * mean).sum(0)
        slope, value = torch.zeros_like(learned), 0.0
        for part in parts:
            x = features[part].float()
            logits = x @ scaled.float() + constant.float()
            labelled = labels[part].expand_as(logits)
            each = binary_cross_entropy_with_logits(logits, labelled, reduction="none")
            value = value + (share[part] * each).double().sum()
            error = share[part] * (logits.sigmoid() - labelled)
            total_error = error.double().sum(0)
            slope[:-1] += ((x.T @ error).double() - mean * total_error) / deviation
            slope[-1] += total_error
        slope[:-1] += 2 * penalty * learned[:-1].detach()
        learned.grad = slope
        loss = float(value) / share.shape[1]
        return value + penalty * learned[:-1].detach().square().sum()

    torch.optim.LBFGS([learned], max_iter=150, history_size=10, line_search_fn="strong_wolfe").step(
        closure
    )
    with torch.no_grad():
        scaled = learned[:-1] / deviation
        return scaled.T.float(), (learned[-1] - (scaled * mean).sum(0)).float(), loss
