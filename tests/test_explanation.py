"""Heat maps lie where the evidence is, for every network, and --explain writes them."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models import ARCHITECTURES, IMAGENET, MINUS_ONE_TO_ONE, ZERO_TO_ONE, Architecture
from pipeline.common.errors import UserError
from pipeline.detectors.calibration import Calibration
from pipeline.detectors.detector import GRAPH, Detector, load_detector, write_detector
from pipeline.detectors.runtime import Runtime
from pipeline.keras_engine import backend as keras_backend
from pipeline.photos.images import read_image, resize
from pipeline.photos.photo import Photo
from pipeline.rows.files import read_rows
from pipeline.rows.rows import Row
from pipeline.scoring.explanation import WEIGHTS, Explainer, HeatMapFolder, overlay, picture_name
from pipeline.scoring.scoring import Scored
from tests.conftest import DETECTOR, FACE_SAMPLE, REPOSITORY, SAMPLES
from tests.shared import SHARED, needs_shared
from tests.test_commands import assert_refused
from tests.tiny_detectors import make_detector

pytestmark = pytest.mark.usefixtures("own_cache")

LITE0 = "efficientnet_lite0"
KERAS = ("meso4", "mesoinception4")
SHIPPED = (*KERAS, LITE0)
LARGE = ("vit", "vit_small_patch16_224", "xception", "resnet50")


def detector_of(folder: Path, architecture: Architecture, network) -> Detector:
    """A network's weights as a detector that nobody has verified."""
    save_weights(network, folder)
    files = {path.name: "" for path in folder.iterdir()}
    calibration = Calibration(1.0, 0.5, 0.5, "0.5")
    return Detector(
        folder, "detector", architecture, "area", "none", 1.0, calibration, {"files": files}
    )


def detector_folder(folder: Path, architecture: str) -> Path:
    """A detector folder with a small graph and the weights of the real network, from a seed."""
    detector = load_detector(make_detector(folder, architecture))
    network = seeded(ARCHITECTURES[architecture])
    graph = detector.graph.read_bytes()
    with write_detector(folder, detector.description) as new:
        (new / GRAPH).write_bytes(graph)
        save_weights(network, new)
    return folder


def seeded(architecture: Architecture):
    if architecture.framework == "torch":
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        return architecture.build()
    keras_backend.choose_torch()  # as Explainer will
    keras_backend.seed(0)
    return architecture.build()


def save_weights(network, folder: Path) -> None:
    if hasattr(network, "save_weights"):
        network.save_weights(folder / WEIGHTS["keras"])
    else:
        from safetensors.torch import save_file

        save_file(network.state_dict(), folder / WEIGHTS["torch"])


def face(size: int = 256) -> np.ndarray:
    return resize(read_image(FACE_SAMPLE), size, "area")


# Every network


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in ARCHITECTURES]
)
def test_each_network_of_the_catalogue_has_heat_maps(name, tmp_path):
    detector = load_detector(detector_folder(tmp_path / name, name))
    size = detector.architecture.input_size
    pixels = np.stack([face(size), cv2.flip(face(size), 1)])
    heat = Explainer(detector).heat_maps(pixels)
    assert heat.shape == (2, size, size)
    assert heat.dtype == np.float32
    assert np.isfinite(heat).all()
    assert heat.min() >= 0
    for of_picture in heat:
        assert of_picture.max() in (0, 1)
    assert np.ptp(heat) > 0, "some evidence for fake in one of them"


def test_the_network_that_is_explained_is_the_one_that_scores():
    """The weights beside the graph, loaded as Explainer loads them, give the graph's logits."""
    keras_backend.choose_torch()
    for name in KERAS:
        detector = load_detector(REPOSITORY / "weights" / name)
        network = detector.architecture.build()
        network.load_weights(detector.folder / WEIGHTS["keras"])
        pixels = np.stack([face(), cv2.flip(face(), 1)])
        logits = network.predict_on_batch(detector.architecture.scaling(pixels))[:, 0]
        scored = Runtime(detector.graph, detector.architecture).logits(pixels)
        np.testing.assert_allclose(logits, scored, atol=1e-4)


def test_a_picture_has_the_same_map_in_any_company():
    explainer = Explainer(load_detector(DETECTOR))
    pixels = np.stack([np.roll(face(), shift, axis=1) for shift in range(0, 180, 10)])
    together = explainer.heat_maps(pixels)
    for number in (0, 7, 17):
        [alone] = explainer.heat_maps(pixels[number : number + 1])
        np.testing.assert_allclose(together[number], alone, atol=1e-3)
    assert explainer.heat_maps(pixels[:0]).shape == (0, 256, 256)


# Where the evidence is


def flat_network():
    """(N, 64, 64, 3) → brightness of the right half minus that of the left, place by place."""
    import keras

    pixels = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(1, 1)(pixels)
    x = keras.layers.MaxPooling2D(8)(x)
    network = keras.Model(pixels, keras.layers.Dense(1)(keras.layers.Flatten()(x)))
    signs = np.repeat([[-1.0] * 4 + [1.0] * 4], 8, axis=0).reshape(64, 1)
    network.set_weights([np.full((1, 1, 3, 1), 1 / 3), np.zeros(1), signs, np.zeros(1)])
    return network


def pooled_network():
    """(N, 64, 64, 3) → how red a picture is, minus how green, wherever it is so."""
    import keras

    pixels = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(3, 1, strides=4)(pixels)
    x = keras.layers.GlobalAveragePooling2D()(x)
    network = keras.Model(pixels, keras.layers.Dense(1)(x))
    colours = np.array([[1.0], [-1.0], [0.0]])
    network.set_weights([np.eye(3)[None, None], np.zeros(3), colours, np.zeros(1)])
    return network


FLAT = Architecture("flat", "tests.test_explanation:flat_network", 64, ZERO_TO_ONE, "NHWC")
POOLED = Architecture("pooled", "tests.test_explanation:pooled_network", 64, ZERO_TO_ONE, "NHWC")


@pytest.mark.parametrize("architecture", [FLAT, POOLED], ids=lambda one: one.name)
def test_heat_of_a_keras_network_lies_where_the_evidence_is(architecture, tmp_path):
    """Grad-CAM could not tell the places of the flat network apart: its weight of the channel is
    the mean gradient over all places, here 0."""
    explainer = Explainer(detector_of(tmp_path, architecture, seeded(architecture)))
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[8:16, 8:16] = (0, 255, 0)  # speaks for real
    picture[40:48, 48:56] = (128, 0, 0)  # speaks for fake, if less
    [heat] = explainer.heat_maps(picture[None])
    assert heat[36:52, 44:60].sum() > 0.9 * heat.sum()
    assert heat[40:48, 48:56].max() == 1
    assert heat[:32, :32].max() == 0
    [nothing] = explainer.heat_maps(np.zeros((1, 64, 64, 3), np.uint8))
    assert nothing.max() == 0


def fine_resnet():
    """The tiny ResNet with a last feature map of 8 × 8 places rather than 2 × 2."""
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(
        Bottleneck, (1, 1, 1, 1), num_classes=1, channels=(8, 16, 16, 32), output_stride=8
    )


FINE_RESNET = Architecture(
    "fine_resnet", "tests.test_explanation:fine_resnet", 64, IMAGENET, "NCHW"
)
VIT = Architecture("tiny_vit", "tests.tiny_timm:tiny_vit", 64, MINUS_ONE_TO_ONE, "NCHW")


def composites(faces: np.ndarray, number: int, random: np.random.Generator):
    """Pictures (N, 64, 64, 3), of which every second has one half (left, right, top or bottom) of
    another make, a fine pattern in it; labels (N,); which pixels those are (N, 64, 64)."""
    pictures = faces[random.choice(len(faces), number)]
    pasted = np.zeros((number, 64, 64), bool)
    pattern = 60 * (np.indices((64, 64)).sum(0) // 2 % 2)[..., None] - 30
    for picture, half in zip(pictures[1::2], pasted[1::2], strict=True):
        half[:32] = True
        half[:] = np.rot90(half, random.integers(4))
        picture[half] = np.clip(picture.astype(int) + pattern, 0, 255)[half]
    return pictures, np.arange(number) % 2, pasted


@pytest.mark.parametrize("architecture", [VIT, FINE_RESNET], ids=lambda one: one.name)
def test_heat_of_a_timm_network_lies_on_the_pasted_half(architecture, tmp_path):
    torch = pytest.importorskip("torch")
    from tests.tiny_timm import faces

    known, new = np.split(faces(160), [128])
    network = seeded(architecture)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    random = np.random.default_rng(0)
    losses = [1.0]
    while np.mean(losses[-9:]) > 0.03:
        pictures, labels, _ = composites(known, 32, random)
        logits = network(torch.from_numpy(architecture.scaling(pictures)).permute(0, 3, 1, 2))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits[:, 0], torch.from_numpy(labels).float()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert len(losses) < 200, "it learned nothing that could be explained"

    pictures, _, pasted = composites(new, 32, random)
    heat = Explainer(detector_of(tmp_path, architecture, network)).heat_maps(pictures[1::2])
    assert on_pasted(heat, pasted[1::2]) > 0.8


def on_pasted(heat: np.ndarray, pasted: np.ndarray) -> float:
    """The share of the heat that lies on the pasted pixels, mean over the pictures."""
    return float(np.mean((heat * pasted).sum((1, 2)) / heat.sum((1, 2))))


@needs_shared
@pytest.mark.parametrize(
    "name", [LITE0, *(pytest.param(name, marks=pytest.mark.slow) for name in KERAS)]
)
def test_deleting_the_most_important_tenth_costs_a_fake_more_than_a_random_tenth(name):
    """Random are single pixels; blobs as large as those of heat maps; the heat map's own shape,
    moved elsewhere. What is deleted is painted black, or in the picture's mean colour. Black
    itself costs EfficientNet-Lite0 more than its evidence, so that in black only the heat map's own
    shape is compared."""
    detector = load_detector(REPOSITORY / "weights" / name)
    runtime = Runtime(detector.graph, detector.architecture)
    fakes = [some_faces(detector, f"{kind}/fake", 20, 1) for kind in ("stylegan", "dfdc")]
    pixels = np.concatenate(fakes)
    heat = Explainer(detector).heat_maps(pixels)
    side = heat.shape[1]
    random = np.random.default_rng(0)
    scattered = random.random(heat.shape)
    blobs = [cv2.resize(cells, (side, side)) for cells in random.random((len(heat), 8, 8))]
    quarter = side // 4
    moved = [np.roll(one, random.integers(quarter, 3 * quarter, 2), (0, 1)) for one in heat]
    logits = runtime.logits(pixels)
    for colour in (np.uint8(0), pixels.mean((1, 2), keepdims=True).astype(np.uint8)):

        def cost(importance, colour=colour) -> float:
            deleted = np.stack([top_tenth(of_picture) for of_picture in importance])[..., None]
            return float(np.mean(logits - runtime.logits(np.where(deleted, colour, pixels))))

        important = cost(heat)
        at_random = {"blobs": cost(blobs), "moved": cost(moved), "scattered": cost(scattered)}
        print(f"{'mean colour' if np.any(colour) else 'black'}: {important:.2f}, {at_random}")
        if name == LITE0 and not np.any(colour):
            del at_random["scattered"], at_random["blobs"]
        assert important > 1.2 * max(at_random.values())


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "least"),
    [
        ("meso4", "stylegan", 0.52),
        ("mesoinception4", "stylegan", 0.52),
        (LITE0, "stylegan", 0.60),
        (LITE0, "dfdc", 0.57),
        (LITE0, "text_to_image", 0.58),
    ],
)
def test_heat_of_the_shipped_networks_leans_to_the_fake_half(name, kind, least):
    """Little where the network knows little: 0.54, 0.55, 0.62, 0.59 and 0.59 were measured. Each
    pair of faces gives two pictures, so that a network which prefers one side gains nothing."""
    detector = load_detector(REPOSITORY / "weights" / name)
    fake = some_faces(detector, f"{kind}/fake", 40, 0)
    real = some_faces(detector, f"{kind}/real", 40, 0)
    left = np.zeros(fake.shape[1:3], bool)
    left[:, : fake.shape[2] // 2] = True
    explainer = Explainer(detector)
    shares = [
        on_pasted(explainer.heat_maps(np.where(half[..., None], fake, real)), half[None])
        for half in (left, ~left)
    ]
    print(f"on the fake half: {np.mean(shares):.2f}")
    assert np.mean(shares) > least


def some_faces(detector: Detector, kind: str, number: int, first: int) -> np.ndarray:
    """Some faces of the test set as the detector is fed, (number, size, size, 3) uint8."""
    size, resize_filter = detector.architecture.input_size, detector.resize_filter
    paths = sorted((SHARED / "faces" / "test" / kind).iterdir())
    chosen = paths[first :: len(paths) // number][:number]
    return np.stack([resize(read_image(path), size, resize_filter) for path in chosen])


def top_tenth(heat: np.ndarray) -> np.ndarray:
    """Which pixels are the tenth with the most heat; among equals, as the noise has it."""
    noise = np.random.default_rng(1).random(heat.shape)
    order = np.lexsort((noise.ravel(), heat.ravel()))
    chosen = np.zeros(heat.size, bool)
    chosen[order[-(heat.size // 10) :]] = True
    return chosen.reshape(heat.shape)


# Pictures of them


@given(st.floats(0, 1), st.integers(0, 255))
def test_an_overlay_gets_brighter_with_heat_and_keeps_the_face(opacity, grey):
    pixels = np.full((8, 8, 3), grey, np.uint8)
    brightness = [
        overlay(pixels, np.full((8, 8), heat, np.float32), opacity).mean()
        for heat in np.linspace(0, 1, 9)
    ]
    assert np.diff(brightness).min() >= -1  # rounding
    np.testing.assert_array_equal(overlay(pixels, np.ones((8, 8), np.float32), 0), pixels)


def test_an_overlay_of_a_face():
    heat = np.zeros((256, 256), np.float32)
    heat[100:150, 100:150] = 1
    shown = overlay(face(), heat)
    assert shown.shape == (256, 256, 3)
    assert shown.dtype == np.uint8
    red, green, blue = shown[heat == 1].mean(0)
    assert min(red, green) > blue, "yellow"
    red, green, blue = shown[heat == 0].mean(0)
    assert blue > max(red, green)


PATHS = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=300)


@given(PATHS, st.integers(0, 999), st.text(min_size=1, max_size=300))
def test_any_path_and_model_make_a_name_that_any_file_system_takes(path, number, model):
    name = picture_name(Row(path=path, face=number, verdict="real", model=model))
    assert name == os.path.basename(name)
    assert len(name.encode()) <= 200  # what writes it atomically adds some
    assert name[0] not in ".-"
    assert not set(name) & set('/\\:*?"<>|\n\t\0')
    assert name.endswith(".png")


def test_names_that_are_alike_do_not_collide():
    rows = [
        Row(path=path, face=number, verdict="real", model=model)
        for path in ("a/b.jpg", "a_b.jpg", "a/b.png", "b.jpg", "x" * 300, "x" * 301, "\udcff.jpg")
        for number in (0, 1)
        for model in ("meso4", "meso/4", "meso_4")
    ]
    names = [picture_name(row) for row in rows]
    assert len({name.lower() for name in names}) == len(rows)
    assert names[0].startswith("b-")
    assert names[0].endswith("-face0-meso4.png")
    photo = Row(path="fotos/Ærø 東京.jpg", face=2, verdict="fake", model="vit")
    assert picture_name(photo).startswith("Ærø_東京-")


def a_scored_face() -> Scored:
    row = Row(path="x\udcff.jpg", face=0, fake_probability=0.5, verdict="fake", model="meso4")
    return Scored(Photo(row.path), [row], [face()])


def test_a_picture_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/why: heat maps cannot be written here \(Not a dir"):
        HeatMapFolder(tmp_path / "file" / "why", [])

    heat_maps = HeatMapFolder(tmp_path / "why", [load_detector(DETECTOR)])
    heat_maps.write(a_scored_face())
    [written] = (tmp_path / "why").iterdir()
    with Image.open(written) as picture:
        assert picture.size == (512, 256)
        assert picture.text["path"] == "x\\udcff.jpg"
        np.testing.assert_array_equal(np.asarray(picture)[:, :256], face())
    written.unlink()
    written.mkdir()
    with pytest.raises(UserError, match=r"-face0-meso4\.png: heat maps cannot be written here"):
        heat_maps.write(a_scored_face())
    assert list((tmp_path / "why").iterdir()) == [written], "nothing unfinished stays behind"


# What cannot be explained


def test_a_detector_without_weights_is_refused(tmp_path):
    detector = load_detector(make_detector(tmp_path / "meso4", "meso4"))
    with pytest.raises(UserError, match=r"has no model\.weights\.h5 beside its graph: train or"):
        Explainer(detector)
    (tmp_path / "meso4" / "model.weights.h5").touch()  # not listed, hence not verified
    with pytest.raises(UserError, match=r"has no model\.weights\.h5"):
        Explainer(detector)


@pytest.mark.parametrize(("name", "other"), [("meso4", "mesoinception4")])
def test_weights_of_another_network_are_refused(name, other, tmp_path):
    detector = detector_of(tmp_path, ARCHITECTURES[name], seeded(ARCHITECTURES[other]))
    with pytest.raises(UserError, match=f"these are not the weights of a {name}"):
        Explainer(detector)


def test_torch_weights_that_lack_a_layer_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    network = seeded(VIT)
    network.head = torch.nn.Identity()
    with pytest.raises(UserError, match="these are not the weights of a tiny_vit"):
        Explainer(detector_of(tmp_path, VIT, network))


@pytest.mark.parametrize(
    ("architecture", "missing"), [("meso4", "keras"), ("meso4", "torch"), ("resnet50", "torch")]
)
def test_without_the_framework_there_is_a_sentence(architecture, missing, own_cache, tmp_path):
    folder = make_detector(tmp_path / architecture, architecture)
    detector = load_detector(folder)
    with write_detector(folder, detector.description) as new:
        (new / GRAPH).touch()
        (new / WEIGHTS[detector.architecture.framework]).touch()
    code = f"""
import sys
from pathlib import Path
sys.modules[{missing!r}] = None
from pipeline.detectors.detector import load_detector
from pipeline.scoring.explanation import Explainer
try:
    Explainer(load_detector(Path({str(folder)!r})))
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=900
    )
    assert done.stdout.startswith(f"UserError Heat maps of {architecture} need {missing}, ")
    assert done.stdout.endswith("pip install -r requirements.txt\n")


# --explain


def test_each_scored_face_gets_a_picture(infer, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    photos = [SAMPLES / "two_people.jpg", SAMPLES / "no_face_coffee.webp", tmp_path / "broken.jpg"]
    done = infer(*photos, "--output", tmp_path / "rows.csv", "--explain", tmp_path / "new" / "why")
    assert done.returncode == 1, done.stderr.decode()
    rows = [row for row in read_rows(tmp_path / "rows.csv") if row["fake_probability"] is not None]
    assert len(rows) == 2
    pictures = {path.name: path for path in (tmp_path / "new" / "why").iterdir()}
    assert set(pictures) == {picture_name(Row(**row)) for row in rows}
    for row in rows:
        with Image.open(pictures[picture_name(Row(**row))]) as picture:
            assert picture.text["path"] == row["path"]
            assert picture.text["face"] == str(row["face"])
            assert picture.text["verdict"] == row["verdict"]
            shown = np.asarray(picture)
        assert shown.shape == (256, 512, 3)
        assert np.ptp(shown[:, 256:].astype(int) - shown[:, :256], axis=(0, 1)).min() > 0


def test_a_folder_for_heat_maps_that_cannot_be(infer, tmp_path):
    done = infer(FACE_SAMPLE, "--explain", FACE_SAMPLE)
    assert_refused(done, "real_hopper_face.heic: heat maps cannot be written here (File exists)")


@pytest.mark.slow
def test_two_networks_of_two_frameworks_explain_the_same_face(infer, tmp_path):
    """Keras' and timm's, both on torch."""
    folders = [
        detector_folder(tmp_path / name, name) for name in ("xception", "efficientnet_lite0")
    ]
    weights = [argument for folder in folders for argument in ("--weights", folder)]
    why = tmp_path / "why"
    done = infer(FACE_SAMPLE, *weights, "--explain", why, script="infer_xception_efficientnet.py")
    assert done.returncode == 0, done.stderr.decode()
    sizes = {}
    for path in why.iterdir():
        with Image.open(path) as picture:
            sizes[picture.text["model"]] = picture.size
    assert sizes == {"xception": (512, 256), "efficientnet_lite0": (448, 224)}


def test_hirescam_as_its_paper_defines_it(tmp_path):
    """Draelos & Carin, 2020: each feature times its gradient, summed over channels. The gradients
    are known here: a place's own weight behind the pooling, and before it that weight where a place
    is the largest of its 8 × 8, else 0."""
    random = np.random.default_rng(0)
    blocks = random.permuted(np.tile(4 * np.arange(64), (2 * 64, 1)), axis=1)  # no two alike
    grey = blocks.reshape(2, 8, 8, 8, 8).swapaxes(2, 3).reshape(2, 64, 64)
    pixels = np.repeat(grey[..., None].astype(np.uint8), 3, axis=-1)
    weights = np.repeat([-1.0, 1.0], 4)
    pooled = np.full((2, 8, 8), 252 / 255) * weights
    before = np.where(grey == 252, grey / 255, 0) * np.repeat(weights, 8)
    expected = np.zeros((2, 64, 64))
    for number, of_picture in enumerate(zip(before, pooled, strict=True)):
        for evidence in of_picture:
            resized = cv2.resize(np.maximum(evidence, 0), (64, 64))
            expected[number] += resized / resized.max()
        expected[number] /= expected[number].max()
    detector = detector_of(tmp_path, FLAT, seeded(FLAT))
    np.testing.assert_allclose(Explainer(detector).heat_maps(pixels), expected, atol=1e-4)


@needs_shared
def test_published_weights_are_explained_too(own_cache):
    """The import keeps the weights beside the graph, turned round as the graph is."""
    from pipeline.scoring.importing import import_published

    detector = import_published(SHARED / "mesonet" / "Meso4_DF.h5")
    [heat] = Explainer(detector).heat_maps(face()[None])
    assert heat.max() == 1
