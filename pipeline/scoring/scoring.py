"""Photos in, rows out: decoding and face search in threads, the networks in batches, in order."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np

from pipeline.common.errors import ImageError
from pipeline.common.graphs import NOT_FINITE, openvino_core
from pipeline.common.machine import usable_cores
from pipeline.common.out_of_memory import is_out_of_memory, out_of_memory_in_words
from pipeline.detectors.detector import Detector
from pipeline.detectors.runtime import Runtime
from pipeline.origin.declared import NOTHING, Declaration
from pipeline.photos.faces import Face, FaceFinder, FaceRegion, crop_region, regions_to_see
from pipeline.photos.images import read_picture, resize
from pipeline.photos.photo import Photo
from pipeline.rows.rows import Row, by_face
from pipeline.rows.run_settings import ModelSettings, RunSettings, version_of
from pipeline.scoring.provenance import describe
from pipeline.scoring.stability import (
    CHANGES,
    UNASKED,
    Stability,
    changed,
    is_near,
    kept,
    stability_of,
)


class Scorer:
    """Scores photos with one detector, or with several over one decoding and one face search.

    Each detector sees its own crops (margin, size, resize filter) of the same faces. `face_mode`
    ("auto" or "none") is each detector's own unless given; `threshold` (0…1) likewise. `workers`
    threads decode and search, by default one for each core that this process may use.

    Batches larger than 8 take more memory and, on a CPU, no less time for a face.
    """

    def __init__(
        self,
        *detectors: Detector,
        face_mode: str | None = None,
        threshold: float | None = None,
        device: str = "auto",
        batch_size: int = 8,
        workers: int | None = None,
    ):
        openvino_core()
        with ThreadPoolExecutor(1) as pool:  # both take a while to get ready
            needs_search = any((face_mode or each.face_mode) != "none" for each in detectors)
            finder = pool.submit(FaceFinder) if needs_search else None
            self._networks = [
                _Network(detector, face_mode, threshold, device, batch_size)
                for detector in detectors
            ]
            self._finder = finder.result() if finder else None
        self._batch_size = batch_size
        self._workers = workers

    def score(self, photos: Iterable[Photo], stability: bool = False) -> Iterator[list[Row]]:
        """The rows of each photo, in the order of the photos; see `look`."""
        return (scored.rows for scored in self.look(photos, stability))

    def settings(self, stability: bool = False) -> RunSettings:
        """How each detector scores in such a run, by its name."""
        return {network.name: network.settings(stability) for network in self._networks}

    def described(self, stability: bool = False) -> list[dict]:
        """What a record says of each detector in such a run, see provenance.describe."""
        return [network.described(stability) for network in self._networks]

    def verdict(self, model: str, fake_probability: float) -> str:
        """What the detector of this name calls a fake_probability, at the threshold of this run."""
        [network] = (network for network in self._networks if network.name == model)
        return network.verdict(fake_probability)

    def look(self, photos: Iterable[Photo], stability: bool = False) -> Iterator["Scored"]:
        """Score photos, in their order, and give with each row the pixels that it rests on.

        Of each face there is a row of every detector, in the order of the detectors and next to
        each other; where there are several, `agreement` says whether their verdicts are the same.
        A photo that no detector can look at, because it shows no face or cannot be read, has one
        row; its `model` is empty where there are several detectors. What cannot be read has the
        verdict `error`, and the others go on.

        Should one detector take whole pictures and another faces, these are not compared: their
        rows follow each other without an agreement, and the other's may be a `no face`.

        What a file says of its own origin stands in all its rows, and changes nothing else in them.

        With `stability`, faces near a threshold are scored again after small changes, and a verdict
        that does not hold becomes `uncertain`; see stability.py.

        `photos` is read only as far ahead as the threads need, so memory does not grow with their
        number. A batch is what has been prepared by the time that the networks are free, at most
        `batch_size` faces or photos: slow networks get full batches, fast ones need not wait.
        """
        workers = self._workers or usable_cores()
        pool = ThreadPoolExecutor(workers)
        try:
            batch: list[_Prepared] = []
            prepare = partial(self._prepare, keep_faces=stability)
            pending = _in_order(pool, prepare, photos, self._batch_size + 2 * workers)
            for prepared, next_is_ready in pending:
                batch.append(prepared)
                faces = sum(prepared.faces for prepared in batch)
                full = max(faces, len(batch)) >= self._batch_size  # many photos may hold few faces
                if full or not next_is_ready:
                    yield from self._score_batch(batch)
                    batch = []
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, photo: Photo, keep_faces: bool) -> "_Prepared":
        nothing: list[list[_View]] = [[] for _ in self._networks]
        if photo.error:
            return _Prepared(photo, nothing, photo.error)
        try:
            image, declared = photo.read() if photo.read else read_picture(photo.path)
            faces = self._finder.find(image) if self._finder else []
            views = [network.look(image, faces, keep_faces) for network in self._networks]
            return _Prepared(photo, views, declared=declared)
        except ImageError as error:
            return _Prepared(photo, nothing, str(error))
        except Exception as error:  # not foreseen, yet no reason to give up the other photos
            if is_out_of_memory(error):
                return _Prepared(photo, nothing, out_of_memory_in_words(error))
            return _Prepared(photo, nothing, f"unexpected {type(error).__name__}: {error}")

    def _score_batch(self, batch: list["_Prepared"]) -> Iterator["Scored"]:
        judged = [
            network.judge([view for prepared in batch for view in prepared.views[index]])
            for index, network in enumerate(self._networks)
        ]
        for prepared in batch:
            scored = self._scored(prepared, judged)
            for row in scored.rows:
                row.declared, row.declared_by = prepared.declared
            yield scored

    def _scored(self, prepared: "_Prepared", judged: list[Iterator["_Judged"]]) -> "Scored":
        if prepared.error or not prepared.faces:
            return self._without_face(prepared.photo, prepared.error)
        seen: list[tuple[Row, np.ndarray | None]] = []
        for network, views, its_judged in zip(self._networks, prepared.views, judged, strict=True):
            its_rows = list(network.rows(prepared.photo.path, views, its_judged))
            fed = [view.pixels for view in views] or [None]
            seen += zip(its_rows, fed, strict=True)
        for row, _ in seen:
            for value in (row.fake_probability, row.fake_probability_low):
                if value is not None and not math.isfinite(value):
                    return self._without_face(prepared.photo, NOT_FINITE.format(row.model))
        faces = by_face(seen, key=lambda pair: pair[0])
        for of_face in faces:
            if len(of_face) > 1:
                agreement = len({row.verdict for row, _ in of_face}) == 1
                for row, _ in of_face:
                    row.agreement = agreement
        rows, pixels = zip(*(pair for of_face in faces for pair in of_face), strict=True)
        return Scored(prepared.photo, list(rows), list(pixels))

    def _without_face(self, photo: Photo, error: str) -> "Scored":
        """A photo that shows no face or, where `error` holds a sentence, cannot be scored."""
        model = self._networks[0].name if len(self._networks) == 1 else None
        verdict = "error" if error else "no face"
        row = Row(path=photo.path, verdict=verdict, model=model, error=error or None)
        return Scored(photo, [row], [None])


class Scored(NamedTuple):
    """A photo that has been scored.

    `pixels` holds for each row the (size, size, 3) uint8 that its network was fed; None for a row
    without a face.
    """

    photo: Photo
    rows: list[Row]
    pixels: list[np.ndarray | None]


class _View(NamedTuple):
    """What a network sees of a face."""

    region: FaceRegion
    pixels: np.ndarray  # (size, size, 3) uint8
    face: np.ndarray | None = None  # (h, w, 3) uint8, as cut out, to be looked at again


class _Judged(NamedTuple):
    """What a network makes of a face."""

    fake_probability: float
    stability: Stability


class _Prepared(NamedTuple):
    """A photo that has been read: what each network will see of its faces."""

    photo: Photo
    views: list[list[_View]]
    error: str = ""
    declared: Declaration = NOTHING

    @property
    def faces(self) -> int:
        return max(map(len, self.views))


class _Network:
    """A detector at work, with the settings of this run."""

    def __init__(
        self,
        detector: Detector,
        face_mode: str | None,
        threshold: float | None,
        device: str,
        batch_size: int,
    ):
        self.name = detector.name
        self.face_mode = face_mode or detector.face_mode
        self._detector = detector
        self._calibration = detector.calibration
        if threshold is not None:
            self._calibration = self._calibration.at(threshold)
        self.verdict = self._calibration.verdict
        self._runtime = Runtime.of(detector, device)
        self._batch_size = batch_size

    def settings(self, stability: bool) -> ModelSettings:
        version = version_of(self._detector)
        return ModelSettings(self.face_mode, self._calibration.threshold, version, stability)

    def described(self, stability: bool) -> dict:
        """What a record says of it."""
        settings = self.settings(stability)
        return describe(self._detector, self._calibration, settings, self._runtime.precisions)

    def look(self, image: np.ndarray, faces: list[Face], keep_faces: bool) -> list[_View]:
        """What it sees of an image (H, W, 3) uint8 with these faces. Called by many threads."""
        views = []
        for region in regions_to_see(image, faces, self.face_mode, self._detector.margin):
            face = crop_region(image, region)
            views.append(_View(region, self._resized(face), kept(face) if keep_faces else None))
        return views

    def judge(self, views: list[_View]) -> Iterator[_Judged]:
        """What it makes of each view; of those near a threshold whose face was kept, whether that
        holds."""
        probabilities = self._probabilities([view.pixels for view in views])
        again = [
            view.face is not None and is_near(probability, self._calibration)
            for view, probability in zip(views, probabilities, strict=True)
        ]
        copies = [
            self._resized(copy)
            for view, chosen in zip(views, again, strict=True)
            if chosen
            for copy in changed(view.face)
        ]
        others = iter(self._probabilities(copies))
        for probability, chosen in zip(probabilities, again, strict=True):
            stability = UNASKED
            if chosen:
                of_copies = list(islice(others, len(CHANGES)))
                stability = stability_of(probability, of_copies, self._calibration)
            yield _Judged(probability, stability)

    def _resized(self, face: np.ndarray) -> np.ndarray:
        return resize(face, self._detector.architecture.input_size, self._detector.resize_filter)

    def _probabilities(self, inputs: list[np.ndarray]) -> list[float]:
        """The fake_probability of each input (size, size, 3) uint8; NaN where there is none."""
        parts = [self._runtime.logits(np.stack(part)) for part in _parts(inputs, self._batch_size)]
        logits = np.concatenate(parts or [[]])
        finite = np.isfinite(logits)  # an infinite one would become a probability of 0 or 1
        probabilities = self._calibration.probability(np.where(finite, logits, 0))
        return np.where(finite, probabilities, np.nan).tolist()

    def rows(self, path: str, views: list[_View], judged: Iterator[_Judged]) -> Iterator[Row]:
        """A row a view, or one that says `no face`; takes as many of the judged as views."""
        if not views:
            yield Row(path=path, verdict="no face", model=self.name)
        for number, view in enumerate(views):
            region = view.region
            probability, stability = next(judged)
            box = region.face or region
            yield Row(
                path=path,
                face=number,
                left=round(box.left),
                top=round(box.top),
                right=round(box.right),
                bottom=round(box.bottom),
                face_score=region.face.score if region.face else None,
                fake_probability=probability,
                verdict="uncertain" if stability.reason else self.verdict(probability),
                threshold=self._calibration.threshold,
                model=self.name,
                stability=stability.share,
                fake_probability_low=stability.low,
                fake_probability_high=stability.high,
                reason=stability.reason,
            )


def _in_order(
    pool: ThreadPoolExecutor,
    prepare: Callable[[Photo], _Prepared],
    photos: Iterable[Photo],
    ahead: int,
) -> Iterator[tuple[_Prepared, bool]]:
    """The prepared photos in order, while the pool works on the next `ahead` of them.

    With each comes whether the one after it is prepared by now.
    """
    pending: deque[Future[_Prepared]] = deque()
    photos = iter(photos)
    while True:
        for photo in islice(photos, 1 + ahead - len(pending)):
            pending.append(pool.submit(prepare, photo))
        if not pending:
            return
        prepared = pending.popleft().result()
        yield prepared, bool(pending) and pending[0].done()


def _parts(inputs: list[np.ndarray], largest: int) -> Iterator[list[np.ndarray]]:
    """All inputs in turn, in parts of `largest` or of a power of two below it.

    OpenVINO prepares itself anew (up to half a second) for every number that it has not seen.
    """
    start = 0
    while rest := len(inputs) - start:
        size = largest if rest >= largest else 1 << rest.bit_length() - 1
        yield inputs[start : start + size]
        start += size
