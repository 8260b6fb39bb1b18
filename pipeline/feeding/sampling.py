"""What an epoch of training shows, and in which order: `--balance` and `--self-blended`.

An order is a function of the pictures, the seed and the epoch alone: the same in all processes, and
again after a kill.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.common.errors import UserError
from pipeline.common.labels import CLASS_NAMES, FAKE, REAL
from pipeline.data.dataset import Sample

BALANCES = ("none", "class", "generator")
SELF_BLENDED = "self-blended"  # the generator of forgeries made on the fly

_MOST_PREFIXES = 20  # sources of one class that file names may tell apart


class Epochs:
    """The pictures that epochs are made of, and which of them an epoch shows.

    `pictures` are those of `train` and, from the index `first_forgery` on, a forgery of each real
    one, labelled fake, with the real one's path.

    - `self_blended`: the share of an epoch's fakes that are forgeries of real pictures (0…1). At 1
      the fakes are left out, and there are as many forgeries as real pictures.
    - `balance`: "none" shows every picture once; "class" as many real as fake ones; "generator"
      also, within a class, as many of each generator (see source_of). What there is too little of
      comes several times, of what there is too much a part, another one in each epoch.

    Raises UserError where there is nothing to balance.
    """

    def __init__(self, train: Sequence[Sample], self_blended: float, balance: str, seed: int):
        self._seed = seed
        real = [index for index, sample in enumerate(train) if sample.label == REAL]
        fake = [index for index, sample in enumerate(train) if sample.label == FAKE]
        self.first_forgery = len(train)
        self.pictures = list(train)
        if self_blended:
            self.pictures += [
                replace(train[index], label=FAKE, generator=SELF_BLENDED) for index in real
            ]
        forgeries = range(len(train), len(self.pictures))

        fakes = len(real) if self_blended == 1 else len(fake)
        counts = [len(real), fakes]
        if balance != "none":
            counts = [sum(counts) - sum(counts) // 2, sum(counts) // 2]
        forged = round(self_blended * counts[FAKE])
        self._parts: list[tuple[np.ndarray, int]] = []  # indices, and how many of them to show
        if balance == "none" and not self_blended:
            self._parts.append((np.arange(len(train)), len(train)))
            return
        by_generator = balance == "generator"
        sources = [source_of(train[index]) for index in real]
        self._share_out(real, sources, counts[REAL], by_generator)
        if forged < counts[FAKE]:
            names = [source_of(train[index]) for index in fake]
            self._share_out(fake, names, counts[FAKE] - forged, by_generator)
        if forged:
            self._share_out(forgeries, sources, forged, by_generator)
        if by_generator:
            self._check_sources(train)

    def __len__(self) -> int:
        """The pictures of an epoch."""
        return sum(count for _, count in self._parts)

    def order(self, epoch: int) -> np.ndarray:
        """The pictures of an epoch (N,): as `index + times × len(pictures)`, where `times` counts
        how often the picture has come in this epoch."""
        random = np.random.default_rng((self._seed, epoch))
        drawn = [self._draw(indices, count, random) for indices, count in self._parts]
        return random.permutation(np.concatenate(drawn))

    def frequencies(self) -> np.ndarray:
        """How many times an epoch shows each of the `pictures`, on average (len(pictures),)."""
        often = np.zeros(len(self.pictures))
        for indices, count in self._parts:
            often[indices] += count / len(indices)
        return often

    def index(self, number: int) -> int:
        """Which of the `pictures` a number of an order means."""
        return int(number) % len(self.pictures)

    def composition(self) -> dict[str, Counter]:
        """Class → source → pictures an epoch."""
        counts = {name: Counter() for name in CLASS_NAMES}
        for number in self.order(0):
            sample = self.pictures[self.index(number)]
            counts[CLASS_NAMES[sample.label]][source_of(sample)] += 1
        return counts

    def _share_out(
        self, indices: Sequence[int], sources: Sequence[str], count: int, by_source: bool
    ) -> None:
        """Note that `count` of these pictures are to be shown, as many of each source if wanted."""
        parts = defaultdict(list)
        for index, source in zip(indices, sources, strict=True):
            parts[source if by_source else ""].append(index)
        for number, source in enumerate(sorted(parts)):
            share = count * (number + 1) // len(parts) - count * number // len(parts)
            if share:
                self._parts.append((np.array(parts[source]), share))

    def _draw(self, indices: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        whole, rest = divmod(count, len(indices))
        drawn = [indices + times * len(self.pictures) for times in range(whole)]
        if rest:
            drawn.append(random.permutation(indices)[:rest] + whole * len(self.pictures))
        return np.concatenate(drawn)

    def _check_sources(self, train: Sequence[Sample]) -> None:
        for label, name in enumerate(CLASS_NAMES):
            of_class = [sample for sample in train if sample.label == label]
            by_name = {source_of(sample) for sample in of_class if not sample.generator}
            if len(by_name) > _MOST_PREFIXES:
                raise UserError(
                    f"--balance generator: by their file names the {name} pictures come from "
                    f"{len(by_name):,} sources, for example {min(by_name)}: put those of each "
                    f"generator into a folder {name}/GENERATOR, or leave --balance at class."
                )
        if len({source_of(sample) for sample in train}) <= len({sample.label for sample in train}):
            raise UserError(
                "--balance generator: there is but one generator of each class; name them by "
                "folders real/SOURCE and fake/GENERATOR, by a CSV file's column generator, or by "
                "file names like stylegan_0001.jpg."
            )


def source_of(sample: Sample) -> str:
    """The generator or source of a picture: its `generator`, or else what stands before the last
    underscore of its file's name; empty where there is neither."""
    return sample.generator or sample.path.stem.rpartition("_")[0]


def say_composition(epochs: Epochs) -> None:
    """Say on standard error what an epoch is made of."""
    kinds = []
    for name, sources in epochs.composition().items():
        listed = ", ".join(
            f"{count:,} {source}".rstrip() for source, count in sorted(sources.items())
        )
        kinds.append(f"{sum(sources.values()):,} {name} ({listed})")
    print(f"An epoch shows {' and '.join(kinds)}.", file=sys.stderr)
