"""Detectors written for others give them our fake_probability, without our code, and come back."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, pipeline

from models import ARCHITECTURES
from models.vit import from_transformers, to_transformers
from pipeline.common.errors import UserError
from pipeline.common.files import sha256_of
from pipeline.detectors.calibration import sigmoid
from pipeline.detectors.detector import describe_input, load_detector, write_detector
from pipeline.evaluation.card_usage import HEADING, usage
from pipeline.foreign.library_formats import (
    own_weights,
    save_transformers_configs,
    their_weights,
    timm_config,
)
from pipeline.photos.faces import FaceFinder, face_regions
from pipeline.photos.images import read_image, resize
from pipeline.scoring.explanation import Explainer
from pipeline.scoring.importing import import_published
from pipeline.torch_engine.export import finished
from pipeline.torch_engine.weights import WEIGHTS, read_weights, starting_point
from pipeline.training.for_hub import main, write_for_hub
from pipeline.training.shrinking import shrink
from tests.conftest import REPOSITORY, SAMPLES
from tests.test_published import cache, scored
from tests.tiny_detectors import make_detector

__all__ = ["cache"]  # a fixture

SHIPPED = REPOSITORY / "weights"
TIMM, VIT = "efficientnet_lite0", "vit_tiny_patch16_224"
LIBRARIES = {TIMM: "timm", "resnet50": "timm", VIT: "transformers"}


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """The faces in samples/ that are large enough, cut out: (N, 224, 224, 3) uint8."""
    finder = FaceFinder()
    crops = []
    for path in sorted(SAMPLES.glob("real_*")) + [SAMPLES / "two_people.jpg"]:
        image = read_image(path)
        for region in face_regions(image, finder, "auto"):
            part = image[region.top : region.bottom, region.left : region.right]
            crops.append(resize(part, 224, "area"))
    assert len(crops) >= 4
    return np.stack(crops)


def train(folder: Path, name: str) -> Path:
    """A detector folder with random weights whose verdicts differ from face to face."""
    torch.manual_seed(3)
    architecture = ARCHITECTURES[name]
    network = architecture.build()
    head = getattr(network, architecture.module.HEAD[0])
    with torch.no_grad():
        head.weight.normal_(std=0.3)
        head.bias.fill_(0.4)
    description = json.loads((SHIPPED / TIMM / "detector.json").read_text())
    description |= {
        "name": folder.name,
        "architecture": name,
        "input": describe_input(architecture, "area"),
    }
    description["calibration"]["temperature"] = 1.7
    del description["files"]
    description.pop("weights_in", None)  # that network's graph keeps them
    trained = finished(network, architecture)
    with write_detector(folder, description) as new:
        trained.export(new / "model.onnx")
        trained.save_weights(new)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Architecture → its detector folder, and the same written for others."""
    made: dict[str, tuple[Path, Path]] = {}

    def of(name: str) -> tuple[Path, Path]:
        if name not in made:
            place = tmp_path_factory.mktemp(name)
            own = SHIPPED / name if name == TIMM else train(place / "own", name)
            assert write_for_hub(own, place / "for_hub") == LIBRARIES[name]
            made[name] = own, place / "for_hub"
        return made[name]

    return of


RESNET = pytest.param("resnet50", marks=pytest.mark.slow)  # which takes long to export


@pytest.fixture(params=[RESNET if name == "resnet50" else name for name in LIBRARIES])
def folder(request, folders) -> tuple[Path, Path]:
    return folders(request.param)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# ---- their code


def test_transformers_gives_our_fake_probability(folder, faces):
    own, theirs = folder
    classify = pipeline("image-classification", model=str(theirs))
    assert classify.model.config.id2label == {0: "real", 1: "fake"}
    found = []
    for face in faces:
        scores = {each["label"]: each["score"] for each in classify(Image.fromarray(face))}
        assert scores["real"] + scores["fake"] == pytest.approx(1, abs=1e-6)
        found.append(scores["fake"])
    expected = scored(load_detector(own), faces)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("name", [TIMM, RESNET])
def test_timm_gives_our_fake_probability(folders, faces, name):
    own, theirs = folders(name)
    network = timm.create_model(f"local-dir:{theirs}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(network)
    assert (config["crop_pct"], config["interpolation"]) == (1.0, "bilinear")
    as_fed = timm.data.create_transform(**config)
    with torch.inference_mode():
        outputs = network(torch.stack([as_fed(Image.fromarray(face)) for face in faces]))
    expected = scored(load_detector(own), faces)
    np.testing.assert_allclose(outputs.softmax(1)[:, 1], expected, atol=1e-3)


def test_timm_crops_nothing_off_a_picture_of_another_shape(folders):
    picture = np.zeros((300, 500, 3), np.uint8)
    picture[:, :40] = picture[:, -40:] = 255  # which a crop in the middle would lose
    network = timm.create_model(f"local-dir:{folders(TIMM)[1]}", pretrained=True)
    config = timm.data.resolve_model_data_config(network)
    fed = timm.data.create_transform(**config)(Image.fromarray(picture)).numpy()
    assert fed.shape == (3, 224, 224)
    assert fed[:, :, [2, -3]].min() > 0.9 and fed[:, :, 112].max() < -0.9


def lines_of(folder: Path) -> list[str]:
    """The blocks of code in the section of a model card that says how others use it."""
    section = (folder / "README.md").read_text().partition(HEADING)[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", section, re.MULTILINE)
    return [re.sub("^    ", "", block, flags=re.MULTILINE) for block in blocks]


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in (TIMM, VIT)),
        "shipped vit",
        "shipped meso4",
    ],
)
def test_the_lines_in_the_model_card_run_without_our_code(folders, faces, tmp_path, name):
    if name.startswith("shipped"):
        own, theirs = SHIPPED / name.split()[1], tmp_path / "for_hub"
        assert write_for_hub(own, theirs) == "onnx"
    else:
        own, theirs = folders(name)
    detector = load_detector(own)
    face = resize(faces[0], detector.architecture.input_size, "area")
    place = shutil.copytree(theirs, tmp_path / "elsewhere")
    Image.fromarray(face).save(place / "face.png")
    blocks = lines_of(place)
    assert len(blocks) == (2 if name == TIMM else 1)
    for block in blocks:
        code = block.replace("hf-hub:OWNER/NAME", f"local-dir:{place}")
        done = subprocess.run(
            [sys.executable, "-P", "-c", code.replace("OWNER/NAME", str(place))],
            cwd=place,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        [*_, said] = done.stdout.splitlines()
        if said.startswith("["):
            [said] = re.findall(r"'fake', 'score': ([\d.e-]+)", said)
        assert float(said) == pytest.approx(scored(detector, face[None])[0], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "width", "heads"),
    [("vit", 768, 12), ("vit_small_patch16_224", 384, 6), (VIT, 192, 3)],
)
def test_each_vit_has_the_layers_that_its_config_states(tmp_path, name, width, heads):
    detector = replace(load_detector(SHIPPED / TIMM), architecture=ARCHITECTURES[name])
    with torch.device("meta"):
        network = ARCHITECTURES[name].build()
    save_transformers_configs(tmp_path, network, detector)
    config = ViTConfig.from_pretrained(tmp_path)
    assert (config.hidden_size, config.num_attention_heads) == (width, heads)
    assert (config.intermediate_size, config.num_hidden_layers) == (4 * width, 12)
    assert (config.image_size, config.patch_size, config.layer_norm_eps) == (224, 16, 1e-6)
    fed = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert fed["size"] == {"height": 224, "width": 224}
    assert (fed["image_mean"], fed["image_std"]) == ([0.5] * 3, [0.5] * 3)


def test_resnets_pixels_are_scaled_as_imagenets_are():
    detector = replace(load_detector(SHIPPED / TIMM), architecture=ARCHITECTURES["resnet50"])
    with torch.device("meta"):
        fed = timm_config(ARCHITECTURES["resnet50"].build(), detector)["pretrained_cfg"]
    assert fed["mean"] == pytest.approx(timm.data.IMAGENET_DEFAULT_MEAN)
    assert fed["std"] == pytest.approx(timm.data.IMAGENET_DEFAULT_STD)


# ---- and back


def test_it_is_still_a_detector_that_scores_the_same(folder, faces):
    own, theirs = map(load_detector, folder)
    assert own.graph.read_bytes() == theirs.graph.read_bytes()
    assert own.calibration == theirs.calibration
    heat = [Explainer(detector).heat_maps(faces[:1]) for detector in (own, theirs)]
    assert heat[0].max() == 1
    np.testing.assert_allclose(heat[0], heat[1], atol=1e-3)


def test_training_goes_on_from_the_same_weights(folder, capfd):
    own, theirs = map(load_detector, folder)
    before, _ = read_weights(own.folder, own.architecture)
    after, _ = read_weights(theirs.folder, theirs.architecture)
    assert list(map(sorted, (before, after))) == [sorted(before)] * 2
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-6)
    network = theirs.architecture.build()
    starting_point(str(theirs.folder), theirs.architecture).load(network)
    assert "a new one is trained" not in capfd.readouterr().err


def test_written_for_others_twice_is_the_same(folder, tmp_path):
    _, theirs = folder
    write_for_hub(theirs, tmp_path / "again")
    first, second = (load_file(place / WEIGHTS) for place in (theirs, tmp_path / "again"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-6)


def only_theirs(folder: Path, target: Path) -> Path:
    """What timm or transformers would have saved: the folder without what is our own."""
    target.mkdir()
    for name in ("config.json", "preprocessor_config.json", WEIGHTS):
        if (folder / name).exists():
            shutil.copy(folder / name, target)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("name", [TIMM, VIT])
def test_their_part_of_it_is_imported(folders, faces, cache, tmp_path, name, capfd):
    own, theirs = folders(name)
    theirs = only_theirs(theirs, tmp_path / "theirs")
    detector = import_published(theirs)
    assert detector.architecture.name == name
    assert detector.description["fake_class"]["labels"] == ["real", "fake"]
    np.testing.assert_allclose(
        scored(detector, faces), scored(load_detector(own), faces), atol=1e-3
    )
    # The head is logit / temperature, and kept as the start of a training.
    weights, _ = read_weights(theirs, detector.architecture)
    head = f"{detector.architecture.module.HEAD[0]}.weight"
    temperature = load_detector(own).calibration.temperature
    before = read_weights(own, detector.architecture)[0][head]
    torch.testing.assert_close(weights[head], before / temperature, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_timms_labels_say_what_is_fake(folders, cache, faces, tmp_path):
    own, theirs = folders(TIMM)
    theirs = only_theirs(theirs, tmp_path / "theirs")
    edit(theirs, label_names=["deepfake", "photo"])
    turned = scored(import_published(theirs), faces)
    np.testing.assert_allclose(turned, 1 - scored(load_detector(own), faces), atol=1e-3)
    edit(theirs, label_names=["a", "b"])
    with pytest.raises(UserError, match="--fake-label 'b'"):
        import_published(theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "fake"), [(1, "fake"), (3, "fake")])
def test_timms_classifiers_of_one_and_of_many_classes(cache, faces, tmp_path, classes, fake):
    from pipeline.detectors.fake_class import FakeLabels

    network = timm.create_model("tf_efficientnet_lite0", num_classes=classes).eval()
    save_file(network.state_dict(), tmp_path / WEIGHTS)
    fed = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3}
    labels = ["fake", "real", "cat"][:classes]
    config = {"architecture": "tf_efficientnet_lite0", "label_names": labels}
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": fed}))
    detector = import_published(tmp_path, fake_labels=FakeLabels([fake]))
    scaled = torch.from_numpy(detector.architecture.scaling(faces)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits = network(scaled)
    expected = logits.sigmoid() if classes == 1 else logits.softmax(1)
    np.testing.assert_allclose(scored(detector, faces), expected[:, 0], atol=1e-4)


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


FED = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # The same names of layers, but other padding: it would load, and compute something else.
        ({"architecture": "efficientnet_lite0"}, "timm's efficientnet_lite0 cannot be imported"),
        ({"architecture": ["x"]}, "cannot be imported"),
        ({"architecture": "resnet50"}, "fc.bias is missing"),
        ({"model_args": {"act_layer": "silu"}}, "act_layer is not the usual one"),
        ({"model_args": ["act_layer"]}, "does not say what is fed"),
        ({"global_pool": "max"}, "global_pool is not the usual one"),
        ({"pretrained_cfg": FED | {"input_size": [1, 224, 224]}}, "input_size is"),
        ({"pretrained_cfg": FED | {"input_size": [3, 224, 448]}}, "input_size is"),
        ({"pretrained_cfg": FED | {"std": [0.5, 0.5, 0]}}, "three means and deviations"),
        ({"pretrained_cfg": FED | {"mean": [0.5, 0.5]}}, "three means and deviations"),
        ({"pretrained_cfg": FED | {"mean": [float("nan")] * 3}}, "three means and deviations"),
        ({"pretrained_cfg": {}}, "does not say what is fed to a usual tf_efficientnet_lite0"),
        ({"pretrained_cfg": None}, "does not say what is fed"),
    ],
    ids=str,
)
def test_what_is_not_as_it_should_be_in_timms_config(folders, cache, tmp_path, changes, said):
    theirs = only_theirs(folders(TIMM)[1], tmp_path / "theirs")
    edit(theirs, **changes)
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        import_published(theirs)
    assert str(theirs) in str(refused.value)


@pytest.mark.parametrize(
    "hub",
    [
        None,
        "timm",
        {},
        {"library": "keras", "temperature": 1.0},
        {"library": "timm"},
        {"library": "timm", "temperature": 0},
        {"library": "timm", "temperature": float("nan")},
    ],
    ids=str,
)
def test_a_malformed_note_of_what_it_was_written_for_is_refused(folders, tmp_path, hub):
    place = shutil.copytree(folders(TIMM)[1], tmp_path / "detector")
    description = json.loads((place / "detector.json").read_text())
    (place / "detector.json").write_text(json.dumps(description | {"hub": hub}))
    with pytest.raises(UserError, match=r"detector\.json is incomplete or malformed"):
        load_detector(place)
    with pytest.raises(UserError, match=r"is not what its detector\.json says"):
        read_weights(place, ARCHITECTURES[TIMM])


# ---- the head


@settings(max_examples=50, deadline=None)
@given(
    weights=st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4),
    bias=st.floats(-3, 3, width=32),
    temperature=st.floats(0.05, 20),
)
def test_softmax_over_two_logits_is_our_fake_probability(weights, bias, temperature):
    architecture = ARCHITECTURES["resnet50"]
    before = {"fc.weight": torch.tensor([weights]), "fc.bias": torch.tensor([bias])}
    theirs = their_weights(before, architecture, temperature)
    features = torch.linspace(-1, 1, 4)
    probability = (theirs["fc.weight"] @ features + theirs["fc.bias"]).softmax(0)[1]
    logit = (before["fc.weight"] @ features + before["fc.bias"]).double().numpy()
    assert probability.item() == pytest.approx(sigmoid(logit / temperature)[0], abs=1e-5)
    description = {"hub": {"library": "timm", "temperature": temperature}}
    after = own_weights(theirs, architecture, description)
    for name in before:
        torch.testing.assert_close(after[name], before[name])


@pytest.mark.parametrize("name", ["vit_small_patch16_224", VIT])
def test_names_of_transformers_and_back(name):
    before = ARCHITECTURES[name].build().state_dict()
    after = from_transformers(to_transformers(before))
    assert set(after) == set(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


# ---- the command


def test_the_command_says_what_loads_it(tmp_path, capsys):
    output = tmp_path / "new" / "lite"
    assert main([str(SHIPPED / TIMM), "--output", str(output)]) == 0
    assert f"{output}: can be loaded with timm" in capsys.readouterr().out
    assert main([str(SHIPPED / TIMM), "--output", str(output)]) == 0, "it may replace its own"


@pytest.mark.parametrize("there", ["photos", "a detector", "a file"])
def test_nothing_else_is_overwritten(tmp_path, there):
    target = tmp_path / "output"
    if there == "a file":
        target.write_text("mine")
    elif there == "photos":
        target.mkdir()
        (target / "photo.jpg").write_bytes(b"mine")
    else:
        make_detector(target, "meso4")
    before = {path: sha256_of(path) for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"--output .*output: there is something else already"):
        write_for_hub(SHIPPED / "meso4", target)
    assert before == {path: sha256_of(path) for path in tmp_path.rglob("*") if path.is_file()}


def test_weights_of_others_cannot_go_under_our_card(tmp_path):
    folder = make_detector(tmp_path / "imported", "meso4")
    with pytest.raises(UserError, match="does not say how it was trained"):
        write_for_hub(folder, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_what_others_load_is_not_shrunk(folders):
    place = folders(VIT)[1]
    with pytest.raises(UserError, match="other libraries load its weights as they are"):
        shrink(place, place)


def test_the_card_says_where_its_head_is_older_than_its_calibration(folders):
    description = json.loads((folders(TIMM)[1] / "detector.json").read_text())
    assert "Calibrated again" not in usage(description)
    description["calibration"]["temperature"] *= 2
    assert "Calibrated again" in usage(description)
    del description["hub"]
    assert usage(description) == ""
