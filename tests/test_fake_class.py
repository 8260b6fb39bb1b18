"""Which class of a foreign classifier means fake: one that clearly says so, or as the user says."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import UserError
from pipeline.comparison.entries import find
from pipeline.detectors.fake_class import FakeLabels, meaning
from pipeline.foreign.hugging_face_folder import architecture_of, labels_in, labels_of
from pipeline.scoring.importing import import_published
from pipeline.scoring.opening import Network, open_detector, open_detectors
from tests.shared import SHARED, needs_shared
from tests.test_published import cache, faces, scored, their_probability, vit_classifier
from tests.tiny_dataset import make_dataset
from tests.tiny_detectors import make_detector

__all__ = ["cache"]  # a fixture

VIT_TINY = Network(("vit_tiny_patch16_224",), training="train_vit.py")

# As published classifiers name their classes; of each pair the second one means fake.
PAIRS = [
    ("original", "deepfake"),
    ("Real", "Fake"),
    ("genuine", "fake"),
    ("authentic", "manipulated"),
    ("pristine", "forged"),
    ("not fake", "fake"),
    ("not_deepfake", "deepfake"),
    ("NotFake", "Fake"),
    ("non-manipulated", "manipulated"),
    ("unaltered", "altered"),
    ("untampered", "tampered"),
    ("real", "not real"),
    ("real", "unreal"),
    ("human", "AI"),
    ("hum", "artificial"),
    ("Human-Generated", "AI-Generated"),
    ("human_made", "machine_made"),
    ("not AI generated", "AI generated"),
    ("AI-free", "AI"),
    ("real", "ai-generated"),
    ("natural", "synthetic"),
    ("Realism", "Deepfake"),
    ("live", "spoof"),
    ("bona fide", "presentation attack"),
    ("RealArt", "AiArtData"),
    ("real_image", "fakeimage"),
    ("0_real", "1_fake"),
    ("camera", "diffusion"),
    ("Photograph", "StyleGAN"),
    ("original", "FaceSwap"),
    ("camera-generated", "generated"),
    ("anything at all", "DEEP-FAKE"),
    ("portrait", "fake"),
    ("REAL (no AI)", "FAKE, not real"),
]
UNCLEAR = [
    ("LABEL_0", "LABEL_1"),
    ("0", "1"),
    ("negative", "positive"),
    ("False", "True"),
    ("cat", "dog"),
    ("portrait", "fair"),  # which end in "ai" plus a letter
    ("real", "authentic"),
    ("fake", "synthetic"),
    ("real", "other"),
    ("fake or real", "unknown"),
    ("normal", "surreal"),
]


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
@pytest.mark.parametrize("change", [str, str.upper, str.lower, lambda s: s.replace(" ", "_")])
def test_one_label_that_clearly_means_fake_decides(pair, change):
    if change is not str and "Art" in pair[0]:
        change = str.lower
    labels = [change(label) for label in pair]
    assert FakeLabels().choose(labels, "vit").output == 1
    assert FakeLabels().choose(labels[::-1], "vit").output == 0


@pytest.mark.parametrize("pair", UNCLEAR, ids="/".join)
def test_where_none_or_both_do_nothing_is_guessed(pair):
    for labels in (pair, pair[::-1]):
        with pytest.raises(UserError) as refused:
            FakeLabels().choose(labels, "some/vit")
        sentence = str(refused.value)
        assert all(part in sentence for part in ("some/vit", "--fake-label", *map(repr, labels)))


@pytest.mark.parametrize(
    "label",
    ["", " ", "-", "写真", "ai" * 300, "not" * 100, "a" * 5000, "un", "free", "\udcff", "0"],
)
def test_any_text_may_be_a_label(label):
    meaning(label)


def test_what_the_user_names_wins():
    assert FakeLabels(["dog"]).choose(("cat", "dog"), "vit").output == 1
    assert FakeLabels(["Real"]).choose(("real", "fake"), "vit").output == 0
    assert FakeLabels(["fake"]).choose(("FAKE", "fake"), "vit").output == 1, "as it is written"
    assert FakeLabels(["x", "y"]).choose(("a", "b", "y"), "vit").output == 2
    with pytest.raises(UserError, match="fits several"):
        FakeLabels(["cat", "dog"]).choose(("cat", "dog"), "vit")
    with pytest.raises(UserError, match=r"tells 3 classes apart.*--fake-label"):
        FakeLabels().choose(("real", "fake", "other"), "vit")


def test_a_name_that_nobody_has_is_refused():
    labels = FakeLabels(["deepfake", "dog"])
    labels.choose(("cat", "dog"), "vit")
    with pytest.raises(UserError, match="--fake-label deepfake: none"):
        labels.require_used()


# ---- the folder


def config(folder: Path, **content) -> Path:
    (folder / "config.json").write_text(json.dumps(content))
    return folder / "config.json"


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ({"id2label": {"1": "fake", "0": "real"}}, ("real", "fake")),
        ({"label2id": {"fake": 0, "real": 1}}, ("fake", "real")),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"fake": "0", "real": 1}},
         ("fake", "real")),
        ({"id2label": {"0": 0, "1": 1}}, ("0", "1")),
        ({"id2label": {"1": "a", "2": "b"}}, None),
        ({"id2label": ["real", "fake"]}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_labels_are_read(tmp_path, content, labels):
    assert labels_in(config(tmp_path, **content)) == labels


def test_labels_that_contradict_each_other_are_refused(tmp_path):
    path = config(tmp_path, id2label={"0": "real", "1": "fake"}, label2id={"real": 1, "fake": 0})
    with pytest.raises(UserError, match="contradict"):
        labels_in(path)


def unexported(folder: Path, *fake_labels: str, pixels: np.ndarray) -> np.ndarray:
    """fake_probability of the imported network, before it is exported, which takes long."""
    import torch

    from pipeline.foreign.hugging_face import classifier_of

    architecture = architecture_of(folder)
    fake = FakeLabels(fake_labels).choose(labels_of(folder), folder)
    network, _ = classifier_of(folder, architecture, fake)
    scaled = torch.from_numpy(architecture.scaling(pixels)).permute(0, 3, 1, 2)
    with torch.no_grad():
        return network(scaled)[:, 0].sigmoid().numpy()


@needs_shared
def test_the_folder_that_was_imported_the_wrong_way_round(cache, tmp_path, capfd):
    model = vit_classifier({0: "original", 1: "deepfake"})
    folder = tmp_path / "vit_finetuned"
    model.save_pretrained(folder)
    shutil.copy(SHARED / "failing" / "hf_labels" / "config.json", folder)
    pixels = faces(224, "area")
    expected = their_probability(model, pixels, 1)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(scored(import_published(folder), pixels), expected, atol=1e-4)


def test_a_vit_folder_means_what_its_labels_say_and_that_is_said_each_time(
    cache, tmp_path, capfd, monkeypatch
):
    model = vit_classifier({0: "deepfake", 1: "real"})
    folder = tmp_path / "vit_finetuned"
    model.save_pretrained(folder)
    for attempt in range(2):
        detector = open_detector(folder)
        said = capfd.readouterr().err
        assert ("Importing" in said) == (attempt == 0)
        assert "'deepfake' counts as fake, by its name" in said
        assert str(folder) in said
        monkeypatch.setitem(
            sys.modules, "pipeline.foreign.hugging_face", None
        )  # once it is imported
    open_detector(detector.folder)  # or a copy of it
    assert "'deepfake' counts as fake" in capfd.readouterr().err
    assert (detector.name, detector.architecture.name) == ("vit_finetuned", "vit_tiny_patch16_224")
    pixels = faces(224, "area")
    expected = their_probability(model, pixels, 0)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(scored(detector, pixels), expected, atol=1e-4)


def test_the_user_decides_where_the_labels_do_not(cache, tmp_path, capfd):
    model = vit_classifier({0: "LABEL_0", 1: "LABEL_1"})
    folder = tmp_path / "vit_finetuned"
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="--fake-label 'LABEL_1'"):
        open_detector(folder)
    with pytest.raises(UserError, match="--fake-label fake: none"):
        open_detectors([make_detector(tmp_path / "other", "vit_tiny_patch16_224")], [VIT_TINY],
                       ["fake"])  # fmt: skip
    pixels = faces(224, "area")
    for output in (0, 1):
        expected = their_probability(model, pixels, output)
        found = unexported(folder, f"label_{output}", pixels=pixels)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    [detector] = open_detectors([folder], [VIT_TINY], ["LABEL_1"])
    assert "'LABEL_1' counts as fake, as --fake-label says" in capfd.readouterr().err
    np.testing.assert_allclose(scored(detector, pixels), expected, atol=1e-4)


def test_of_many_classes_the_named_one_has_the_softmax(cache, tmp_path):
    model = vit_classifier(dict(enumerate(["photo", "GAN", "diffusion", "swap", "drawing"])))
    folder = tmp_path / "vit_finetuned"
    model.save_pretrained(folder)
    with pytest.raises(UserError, match=r"it tells 5 classes apart.*--fake-label"):
        import_published(folder)
    pixels = faces(224, "area")
    for output, name in enumerate(["photo", "GAN", "diffusion", "swap", "drawing"]):
        expected = their_probability(model, pixels, output)
        assert np.ptp(expected) > 1e-3
        found = unexported(folder, name, pixels=pixels)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    detector = import_published(folder, fake_labels=FakeLabels(["drawing"]))
    np.testing.assert_allclose(scored(detector, pixels), expected, atol=1e-4)


def test_classes_that_exclude_nothing_have_a_sigmoid_each(tmp_path):
    import torch

    model = vit_classifier(
        {0: "real", 1: "fake", 2: "blurred"}, problem_type="multi_label_classification"
    )
    folder = tmp_path / "vit_finetuned"
    model.save_pretrained(folder)
    pixels = faces(224, "area")
    scaled = torch.from_numpy((pixels.astype(np.float32) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model(scaled).logits.sigmoid()[:, 1].numpy()
    found = unexported(folder, "fake", pixels=pixels)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_one_class_alone_tells_nothing(tmp_path):
    folder = tmp_path / "vit_finetuned"
    vit_classifier({0: "fake"}).save_pretrained(folder)
    with pytest.raises(UserError, match=r"vit_finetuned: .*'fake'"):
        import_published(folder)


@pytest.mark.slow
def test_a_comparison_takes_the_option_and_says_what_was_decided(cache, tmp_path, capfd):
    data = make_dataset(tmp_path / "data", train=2, validate=4)
    for name, labels in (("unclear", ("a", "b")), ("clear", ("fake", "real"))):
        vit_classifier(dict(enumerate(labels))).save_pretrained(tmp_path / name)
    paths, sets = [tmp_path / "clear", tmp_path / "unclear"], [data / "validate"]
    found = find(paths, sets, None, 0)
    assert [each.label for each in found.entries] == ["clear"]
    [failed] = found.failed
    assert str(tmp_path / "unclear") in failed and "--fake-label" in failed
    capfd.readouterr()
    found = find(paths, sets, None, 0, ["b"])
    assert not found.failed and len(found.entries) >= 2
    said = capfd.readouterr().err
    assert "'b' counts as fake" in said and "'fake' counts as fake" in said
    with pytest.raises(UserError, match="--fake-label c"):
        find(paths, sets, None, 0, ["b", "c"])


@pytest.mark.parametrize(
    "script",
    ["infer_vit.py", "infer_meso4.py", "infer_mesoinception4.py", "infer_resnet50.py",
     "infer_xception_efficientnet.py", "compare_models.py", "score_cluster.py", "train_vit.py",
     "train_meso.py", "train_resnet50.py", "train_efficientnet.py", "train_xception.py"],
)  # fmt: skip
def test_every_script_that_takes_foreign_weights_has_the_option(infer, script):
    done = infer("--help", script=script)
    assert done.returncode == 0, done.stderr.decode()
    assert b"--fake-label" in done.stdout
