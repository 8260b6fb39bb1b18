"""What the face search finds and costs, and what a change to it does to the faces that it found.

    python benchmarks/face_search.py FACES --output before.json [--photos 500]
    python benchmarks/face_search.py FACES --output after.json --against before.json

FACES holds pictures of faces, in folders of any depth. They are pasted into photos of 1 to 24
megapixels, panoramas and long screenshots among them (see face_scenes). Prints the share of the
pasted faces that are found and the processor time a photo, on one thread; --against, also how many
faces of at least 64 pixels were found before and are lost, or the other way round, and how far the
boxes and landmarks of the others have moved. Give it the same FACES, and as many photos at most.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.face_scenes import make_scenes
from benchmarks.measuring import machine
from pipeline.common.command_line import positive_int, run
from pipeline.common.errors import UserError
from pipeline.common.files import atomic_write
from pipeline.photos.face_windows import SMALLEST_FACE
from pipeline.photos.faces import FaceFinder

SAME = 0.5  # intersection over union


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faces", type=Path, nargs="+")
    parser.add_argument("--photos", type=positive_int, default=500)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--against", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    before = json.loads(args.against.read_text("utf-8"))["photos"] if args.against else []
    pictures = sorted(path for folder in args.faces for path in folder.rglob("*.jpg"))
    photos = search(pictures, args.photos)
    with atomic_write(args.output) as file:
        json.dump(machine() | {"photos": photos}, file, indent=1)
    print(summary(photos))
    if before:
        print(difference(before, photos))


def search(pictures: list[Path], count: int) -> list[dict]:
    """Of each photo its name, the processor time, the boxes pasted, and the faces found."""
    cv2.setNumThreads(1)
    finder, photos = FaceFinder(), []
    for number, scene in enumerate(make_scenes(pictures, count, finder)):
        if not number:
            finder.find(scene.pixels)  # to warm up
        start = time.process_time()
        faces = finder.find(scene.pixels)
        seconds = time.process_time() - start
        found = [
            {
                "box": [face.left, face.top, face.right, face.bottom],
                "landmarks": face.landmarks,
                "score": face.score,
            }
            for face in faces
        ]
        pasted = scene.boxes.tolist()
        photos.append({"name": scene.name, "s": seconds, "pasted": pasted, "found": found})
    return photos


def summary(photos: list[dict]) -> str:
    hits = [best(box, photo["found"])[1] >= SAME for photo in photos for box in photo["pasted"]]
    seconds = np.mean([photo["s"] for photo in photos])
    return (
        f"{len(photos)} photos, {len(hits):,} faces of {SMALLEST_FACE} pixels and more: "
        f"{np.mean(hits):.2%} found; {1000 * seconds:.0f} ms of processor time a photo"
    )


def difference(before: list[dict], after: list[dict]) -> str:
    """Of faces of at least SMALLEST_FACE pixels."""
    lost = gained = 0
    overlaps, moved = [], []
    for old, new in zip(before, after, strict=False):
        if (old["name"], old["pasted"]) != (new["name"], new["pasted"]):
            raise UserError("--against: these are other photos; name the same pictures of faces.")
        gained += sum(best(face["box"], old["found"])[1] < SAME for face in _large(new))
        for face in _large(old):
            same, overlap = best(face["box"], new["found"])
            if overlap < SAME:
                lost += 1
                continue
            overlaps.append(overlap)
            apart = np.linalg.norm(np.subtract(same["landmarks"], face["landmarks"]), axis=1)
            moved.append(apart.mean() / _side(face))
    count = min(len(before), len(after))
    times = [sum(photo["s"] for photo in photos[:count]) for photos in (before, after)]
    if not overlaps:
        return f"lost {lost}, gained {gained}"
    return (
        f"lost {lost}, gained {gained}; intersection over union {np.mean(overlaps):.4f} on "
        f"average, worst hundredth {np.quantile(overlaps, 0.01):.3f}; landmarks moved by "
        f"{np.mean(moved):.2%} of a face; {times[1] / times[0]:.2f} times the processor time"
    )


def best(box: list[float], faces: list[dict]) -> tuple[dict | None, float]:
    """The face that shares most with a box, and how much of the union."""
    if not faces:
        return None, 0.0
    overlaps = [_overlap(box, face["box"]) for face in faces]
    number = int(np.argmax(overlaps))
    return faces[number], overlaps[number]


def _large(photo: dict) -> list[dict]:
    return [face for face in photo["found"] if _side(face) >= SMALLEST_FACE]


def _side(face: dict) -> float:
    left, top, right, bottom = face["box"]
    return max(right - left, bottom - top)


def _overlap(one, other) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


if __name__ == "__main__":
    run(main)
