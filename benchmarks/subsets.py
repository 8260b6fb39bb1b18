"""A part of a dataset, as a CSV file that the training scripts take."""

import csv
from pathlib import Path

from pipeline.dataset import CLASS_NAMES, Dataset


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
