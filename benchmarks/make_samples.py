"""Makes the sample photos of `make demo` from public-domain and CC0 pictures.

    python benchmarks/make_samples.py                     # writes samples/
    python benchmarks/make_samples.py --output elsewhere/

The sources ship inside two libraries of requirements.txt, so nothing is downloaded: scikit-image
(Eileen Collins, the cameraman, the cup of coffee) and matplotlib (Grace Hopper). The fakes are
made here: two face swaps, a swapped mouth, a morph and a self-blended face. There is no randomness:
the same library versions give the same files. samples/README.md says what each one is and whom to
credit.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
from matplotlib.cbook import get_sample_data
from PIL import ExifTags, Image
from skimage import data
from skimage.transform import SimilarityTransform, ThinPlateSplineTransform, warp

NASA = "Portrait of Eileen Collins: NASA, public domain."
NAVY = "Portrait of Grace Hopper: James S. Davis, U.S. Navy (DN-SC-84-05971), public domain."

# Points (x, y) in pixels of each portrait, in one order: both pupils, nose base, both corners of
# the mouth, chin, both jaws, both temples, the middle of the forehead. Traced by hand, because a
# face detector's five points miss the eyes behind Hopper's glasses by more than 10 pixels.
COLLINS_POINTS = [
    *[(201, 101), (246, 103), (224, 131), (203, 141), (244, 142), (222, 179)],
    *[(185, 150), (261, 150), (181, 104), (269, 106), (224, 86)],
]
HOPPER_POINTS = [
    *[(221, 188), (306, 187), (267, 250), (230, 277), (305, 277), (268, 333)],
    *[(203, 285), (334, 285), (187, 190), (343, 190), (265, 160)],
]

# Outlines (x, y) of what a swap replaces: the face without hair and ears.
COLLINS_FACE = [
    *[(181, 92), (190, 87), (205, 85), (225, 86), (245, 88), (262, 93), (268, 102), (268, 125)],
    *[(264, 142), (257, 158), (245, 170), (232, 177), (222, 178), (212, 176), (200, 168)],
    *[(189, 157), (183, 142), (180, 120)],
]
COLLINS_MOUTH = [
    *[(196, 126), (252, 126), (262, 142), (256, 158), (245, 170), (232, 177), (222, 178)],
    *[(212, 176), (200, 168), (189, 157), (188, 142)],
]
# Around her face: what stays where it is while the face changes its shape.
COLLINS_SURROUNDINGS = [(150, 60), (300, 60), (150, 200), (300, 200), (0, 256), (256, 0)]
COLLINS_SURROUNDINGS += [(0, 0), (0, 511), (511, 0), (511, 511)]
HOPPER_FACE = [
    *[(190, 165), (212, 158), (240, 154), (268, 153), (296, 154), (320, 157), (340, 166)],
    *[(346, 190), (342, 230), (338, 262), (333, 290), (322, 318), (303, 333), (268, 340)],
    *[(236, 334), (216, 320), (203, 293), (195, 262), (188, 230), (184, 195)],
]
HOPPER_GLASSES = [
    *[(175, 176), (195, 169), (240, 172), (300, 164), (335, 161), (352, 168), (359, 178)],
    *[(357, 189), (346, 191), (340, 215), (320, 232), (290, 232), (268, 200), (245, 230)],
    *[(220, 238), (195, 225), (188, 200), (180, 188)],
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parent.parent / "samples"
    parser.add_argument("--output", type=Path, default=default, help="default: samples/")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    pillow_heif.register_heif_opener()

    collins = data.astronaut()
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        hopper = np.asarray(photo.convert("RGB"))

    save(collins, folder / "real_collins.jpg", NASA)
    # Orientation 6: a viewer must turn the stored pixels 90 degrees clockwise.
    save(np.rot90(hopper), folder / "real_hopper_rotated.jpg", NAVY, orientation=6)
    save(hopper[103:359, 138:394], folder / "real_hopper_face.heic", NAVY)
    save(data.camera(), folder / "real_cameraman.png", "Cameraman: Lav Varshney, CC0.")
    two_people = np.hstack([collins, hopper[10:522]])
    save(two_people, folder / "two_people.jpg", f"Collage of two real portraits. {NASA} {NAVY}")
    save(data.coffee(), folder / "no_face_coffee.webp", "Cup of coffee: Rachel Michetti, CC0.")

    faked = f"FAKE, a composite made for testing deepfake detectors. {NASA}"
    save(
        swap_face(hopper, HOPPER_POINTS, collins, COLLINS_POINTS, COLLINS_FACE),
        folder / "fake_hopper_face_on_collins.jpg",
        f"{faked} {NAVY}",
    )
    save(
        swap_face(collins, COLLINS_POINTS, without_glasses(hopper), HOPPER_POINTS, HOPPER_FACE),
        folder / "fake_collins_face_on_hopper.jpg",
        f"{faked} {NAVY}",
    )
    save(
        swap_face(hopper, HOPPER_POINTS, collins, COLLINS_POINTS, COLLINS_MOUTH),
        folder / "fake_hopper_mouth_on_collins.jpg",
        f"{faked} {NAVY}",
    )
    save(
        morph(without_glasses(hopper), collins),
        folder / "fake_morph_of_both.jpg",
        f"{faked} {NAVY}",
    )
    save(self_blend(collins, COLLINS_FACE), folder / "fake_self_blended_collins.jpg", faked)


def swap_face(
    source: np.ndarray, source_points: list, target: np.ndarray, target_points: list, outline: list
) -> np.ndarray:
    """The target photo with the source's face inside `outline`.

    Photos are RGB uint8 of shape (height, width, 3); points and outline are (x, y) in pixels. The
    face is bent by a thin-plate spline through the points, so that eyes, mouth and chin all meet,
    and its colours are matched to those of the face it covers.
    """
    size = target.shape[:2]
    face = bend(source, source_points, target_points, size)
    return blend(match_colours(face, target, _inside(outline, size)), target, outline)


def morph(hopper: np.ndarray, collins: np.ndarray) -> np.ndarray:
    """Collins' portrait with a face halfway to Hopper's in shape and in colours: the forgery with
    which two persons share a passport."""
    points, theirs = np.array(COLLINS_POINTS, np.float64), np.array(HOPPER_POINTS, np.float64)
    aligned = SimilarityTransform.from_estimate(theirs, points)(theirs)
    between = (points + aligned) / 2
    size = collins.shape[:2]
    fixed = np.array(COLLINS_SURROUNDINGS)
    ours = bend(collins, np.vstack([points, fixed]), np.vstack([between, fixed]), size)
    face = (ours + bend(hopper, theirs, between, size)) / 2
    return blend(match_colours(face, ours, _inside(COLLINS_FACE, size)), ours, COLLINS_FACE)


def bend(photo: np.ndarray, points: list, to: list, size: tuple[int, int]) -> np.ndarray:
    """The photo (height, width, 3) bent so that its `points` come to lie at `to`, of that `size`:
    float64 in 0…255."""
    back = ThinPlateSplineTransform.from_estimate(np.float64(to), np.float64(points))
    return warp(photo, back, output_shape=size, order=3, mode="edge", preserve_range=True)


def self_blend(photo: np.ndarray, outline: list) -> np.ndarray:
    """The photo with its own face pasted on itself, a little larger, shifted and warmer.

    The artefacts of a swap without a second person: Shiohara and Yamasaki, "Detecting Deepfakes
    with Self-Blended Images", CVPR 2022, https://arxiv.org/abs/2204.08376.
    """
    scale, shift = 1.04, (1.5, 1.0)
    centre = np.mean(outline, axis=0)
    enlarge = np.column_stack([np.eye(2) * scale, centre * (1 - scale) + shift])
    height, width = photo.shape[:2]
    face = cv2.warpAffine(photo, enlarge, (width, height), flags=cv2.INTER_CUBIC)
    return blend(face * np.array([1.05, 0.98, 0.94]), photo, outline)


def without_glasses(hopper: np.ndarray) -> np.ndarray:
    """Hopper's portrait with her glasses painted over: their ends would stick out of a new face."""
    mask = _inside(HOPPER_GLASSES, hopper.shape[:2])
    return cv2.inpaint(hopper, mask.astype(np.uint8), 4, cv2.INPAINT_NS)


def match_colours(face: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The face with each channel bent so that its percentiles inside the mask are the target's.

    Black stays black and white stays white, which a shift of the mean would tint.
    """
    matched = np.empty_like(face)
    for channel in range(3):
        knots = [
            [0, *np.percentile(picture[..., channel][mask], (10, 50, 90)), 255]
            for picture in (face, target)
        ]
        matched[..., channel] = np.interp(face[..., channel], *knots)
    return matched


def blend(face: np.ndarray, target: np.ndarray, outline: list) -> np.ndarray:
    """The face over the target inside the outline, with an edge as soft as the face is large."""
    mask = _inside(outline, target.shape[:2]).astype(np.float32)
    feather = np.ptp(outline, axis=0).max() // 16 | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (feather, feather))
    alpha = cv2.GaussianBlur(cv2.erode(mask, disc), (0, 0), feather / 2.5)[..., None]
    return np.clip(face * alpha + target * (1 - alpha), 0, 255).round().astype(np.uint8)


def save(pixels: np.ndarray, path: Path, description: str, orientation: int = 1) -> None:
    """Writes RGB or grey uint8 pixels in the format that the name ends with, credit included."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = description
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif, quality=92)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def _inside(outline: list, size: tuple[int, int]) -> np.ndarray:
    """True inside the outline: boolean of shape `size` (height, width)."""
    return cv2.fillPoly(np.zeros(size, np.uint8), [np.array(outline, np.int32)], 1) > 0


if __name__ == "__main__":
    main()
