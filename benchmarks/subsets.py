"""Parts of a dataset, as CSV files that the training scripts take."""

import csv
from collections.abc import Callable
from pathlib import Path

from pipeline.common.labels import CLASS_NAMES, FAKE, REAL
from pipeline.data.dataset import Dataset, Sample


def write_table(dataset: Dataset, path: Path) -> Path:
    """Write the samples of `dataset` as a CSV file path,label,generator,group,split; its path."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "generator", "group", "split"])
        for split, samples in (("train", dataset.train), ("validate", dataset.validate)):
            for sample in samples:
                label = CLASS_NAMES[sample.label]
                row = [sample.path.resolve(), label, sample.generator, sample.group, split]
                writer.writerow(row)
    return path


def begins_with(dataset: Dataset, names: list[str]) -> Dataset:
    """The pictures whose file names begin with one of `names`."""
    return _where(dataset, lambda name: name.startswith(tuple(names)))


def without(dataset: Dataset, names: list[str]) -> Dataset:
    """The pictures whose file names begin with none of `names`."""
    return _where(dataset, lambda name: not name.startswith(tuple(names)))


def evenly(dataset: Dataset, pictures: int) -> Dataset:
    """Of the dataset `pictures` to train on, evenly spread over those of each class, and half as
    many to validate with."""

    def chosen(samples: list[Sample], count: int) -> list[Sample]:
        of_class = [
            [sample for sample in samples if sample.label == label] for label in (REAL, FAKE)
        ]
        return [sample for samples in of_class for sample in _spread(samples, count // 2)]

    return Dataset(
        dataset.root, chosen(dataset.train, pictures), chosen(dataset.validate, pictures // 2)
    )


def _where(dataset: Dataset, wanted: Callable[[str], bool]) -> Dataset:
    def chosen(samples: list[Sample]) -> list[Sample]:
        return [sample for sample in samples if wanted(sample.path.name)]

    return Dataset(dataset.root, chosen(dataset.train), chosen(dataset.validate))


def _spread(samples: list[Sample], count: int) -> list[Sample]:
    count = min(count, len(samples))
    return [samples[number * len(samples) // count] for number in range(count)]
