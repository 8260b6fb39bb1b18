"""Photos in, rows out: decoding and face search in threads, the network in batches, in order."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pipeline.detector import Detector
from pipeline.errors import ImageError
from pipeline.faces import FaceFinder, FaceRegion, crop_region, face_regions
from pipeline.images import read_image, resize
from pipeline.inputs import Photo
from pipeline.rows import Row
from pipeline.runtime import Runtime


@dataclass
class _Prepared:
    """A photo that has been read: its face regions, and what the network will see of each."""

    photo: Photo
    regions: list[FaceRegion] = field(default_factory=list)
    inputs: list[np.ndarray] = field(default_factory=list)  # (size, size, 3) uint8
    error: str = ""


class Scorer:
    """Scores photos with one detector.

    `face_mode` ("auto" or "none") is the detector's own unless given; `threshold` (0…1) likewise.
    """

    def __init__(
        self,
        detector: Detector,
        face_mode: str | None = None,
        threshold: float | None = None,
        device: str = "auto",
        batch_size: int = 32,
    ):
        self._detector = detector
        self._face_mode = face_mode or detector.face_mode
        self._calibration = detector.calibration
        if threshold is not None:
            self._calibration = self._calibration.at(threshold)
        self._runtime = Runtime(detector.graph, detector.architecture, device)
        self._finder = None if self._face_mode == "none" else FaceFinder()
        self._batch_size = batch_size

    def score(self, photos: Iterable[Photo]) -> Iterator[list[Row]]:
        """The rows of each photo, in the order of the photos.

        `photos` is read only as far ahead as the threads need, so memory does not grow with their
        number. What cannot be read becomes a row with verdict `error`, and the others go on.
        """
        workers = os.cpu_count() or 1
        pool = ThreadPoolExecutor(workers)
        try:
            batch: list[_Prepared] = []
            for prepared in self._prepare_ahead(pool, photos, self._batch_size + 2 * workers):
                batch.append(prepared)
                faces = sum(len(prepared.inputs) for prepared in batch)
                if max(faces, len(batch)) >= self._batch_size:  # many photos may hold few faces
                    yield from self._rows_of_batch(batch)
                    batch = []
            yield from self._rows_of_batch(batch)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _prepare_ahead(
        self, pool: ThreadPoolExecutor, photos: Iterable[Photo], ahead: int
    ) -> Iterator[_Prepared]:
        """The prepared photos in order, while the pool works on the next `ahead` of them."""
        pending: deque[Future[_Prepared]] = deque()
        for photo in photos:
            pending.append(pool.submit(self._prepare, photo))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _prepare(self, photo: Photo) -> _Prepared:
        if photo.error:
            return _Prepared(photo, error=photo.error)
        try:
            image = read_image(photo.path)
            regions = face_regions(image, self._finder, self._face_mode, self._detector.margin)
            size = self._detector.architecture.input_size
            inputs = [
                resize(crop_region(image, region), size, self._detector.resize_filter)
                for region in regions
            ]
        except ImageError as error:
            return _Prepared(photo, error=str(error))
        except Exception as error:  # not foreseen, yet no reason to give up the other photos
            return _Prepared(photo, error=f"unexpected {type(error).__name__}: {error}")
        return _Prepared(photo, regions, inputs)

    def _rows_of_batch(self, batch: list[_Prepared]) -> Iterator[list[Row]]:
        inputs = [pixels for prepared in batch for pixels in prepared.inputs]
        logits = [
            self._runtime.logits(np.stack(inputs[first : first + self._batch_size]))
            for first in range(0, len(inputs), self._batch_size)
        ]
        probabilities = iter(self._calibration.probability(np.concatenate(logits or [[]])).tolist())
        for prepared in batch:
            yield self._rows(prepared, probabilities)

    def _rows(self, prepared: _Prepared, probabilities: Iterator[float]) -> list[Row]:
        path, model = prepared.photo.path, self._detector.name
        if prepared.error:
            return [Row(path=path, verdict="error", model=model, error=prepared.error)]
        if not prepared.regions:
            return [Row(path=path, verdict="no face", model=model)]
        rows = []
        for number, region in enumerate(prepared.regions):
            probability = next(probabilities)
            box = region.face or region
            rows.append(
                Row(
                    path=path,
                    face=number,
                    left=round(box.left),
                    top=round(box.top),
                    right=round(box.right),
                    bottom=round(box.bottom),
                    face_score=region.face.score if region.face else None,
                    fake_probability=probability,
                    verdict=self._calibration.verdict(probability),
                    threshold=self._calibration.threshold,
                    model=model,
                )
            )
        return rows
