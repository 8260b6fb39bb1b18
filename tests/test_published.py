"""Weights of other projects score as their authors' own code does, and mean what it meant."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from models import ARCHITECTURES
from pipeline.common.errors import UserError
from pipeline.common.graphs import cache_folder
from pipeline.detectors.runtime import Runtime
from pipeline.foreign.published import MESONET, find_published, mesonet_file
from pipeline.keras_engine import backend as keras_backend
from pipeline.photos.images import read_image, resize
from pipeline.scoring.importing import import_published
from tests.conftest import SAMPLES
from tests.shared import SHARED, needs_shared


def faces(size: int, filter: str) -> np.ndarray:
    """Whole sample pictures, (N, size, size, 3) uint8."""
    paths = [path for path in sorted(SAMPLES.iterdir()) if path.suffix in (".jpg", ".png")]
    return np.stack([resize(read_image(path), size, filter) for path in paths[:4]])


def scored(detector, pixels: np.ndarray) -> np.ndarray:
    """fake_probability as scoring gives it."""
    logits = Runtime(detector.graph, detector.architecture).logits(pixels)
    return detector.calibration.probability(logits)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- MesoNet


@needs_shared
@pytest.mark.parametrize("name", ["Meso4_DF", "Meso4_F2F", "MesoInception_DF", "MesoInception_F2F"])
def test_the_four_files_are_known_by_their_content(name, tmp_path):
    renamed = shutil.copy(SHARED / "mesonet" / f"{name}.h5", tmp_path / "renamed.h5")
    architecture = "mesoinception4" if "Inception" in name else "meso4"
    assert mesonet_file(renamed) == (name, architecture)
    assert find_published(renamed).architecture.name == architecture
    assert (name, architecture) in MESONET.values()


def test_any_other_file_is_refused(tmp_path):
    path = tmp_path / "Meso4_DF.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UserError, match=r"Meso4_DF\.h5: this is none of MesoNet's four"):
        import_published(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "no.h5", tmp_path / "xception_finetuned.weights.h5"):
        with pytest.raises(UserError, match=r"\.h5.*download_weights\.py"):
            import_published(path)
    with pytest.raises(UserError, match="cannot be read"):
        mesonet_file(tmp_path)


@pytest.mark.slow
@needs_shared
def test_a_file_is_imported_once_and_again_where_the_import_is_damaged(cache, monkeypatch, capfd):
    path = SHARED / "mesonet" / "Meso4_DF.h5"
    detector = import_published(path)
    assert "Importing" in capfd.readouterr().err
    assert detector.name == "Meso4_DF"
    assert detector.architecture.name == "meso4"
    assert (detector.resize_filter, detector.face_mode) == ("nearest", "none")
    assert detector.calibration.threshold == 0.5
    assert cache in detector.folder.parents

    with monkeypatch.context() as without:  # from now on TensorFlow is not needed
        without.setattr(sys, "executable", "no Python that could import it once more")
        again = import_published(path)
    assert again == detector
    assert capfd.readouterr() == ("", "")

    whole = detector.graph.read_bytes()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    expected = Runtime(detector.graph, detector.architecture).logits(pixels)
    detector.graph.write_bytes(whole[:1000])
    mended = import_published(path)
    np.testing.assert_allclose(
        Runtime(mended.graph, mended.architecture).logits(pixels), expected, atol=1e-5
    )


def test_without_its_framework_a_sentence_says_what_to_install(cache, tmp_path, monkeypatch):
    path = tmp_path / "some.h5"
    path.touch()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    monkeypatch.setitem(MESONET, empty, ("Meso4_DF", "meso4"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"some\.h5: .*TensorFlow.*requirements\.txt"):
        import_published(path)
    assert not (cache_folder() / "published").exists() or not any(
        (cache_folder() / "published").iterdir()
    )


def test_another_architecture_than_wanted_is_refused_before_the_import(tmp_path, capfd):
    path = tmp_path / "xception_finetuned.weights.h5"
    path.write_bytes(b"not even looked at")
    with pytest.raises(UserError, match="weights of xception, and this script scores with meso4"):
        import_published(path, ["meso4"])
    assert "Importing" not in capfd.readouterr().err


# ---- fine-tuned with Keras: fake 0, real 1, pixels divided by 255, a sigmoid at the end


def keras_on_torch():
    """Keras as this process, which has torch, may import it; the same weights each time."""
    keras_backend.choose_torch()
    keras_backend.seed(0)
    import keras

    return keras


def with_their_head(backbone):
    import keras

    layers = keras.layers
    x = layers.GlobalAveragePooling2D()(backbone.output)
    x = layers.Dense(128, activation="relu")(x)
    x = layers.Dropout(0.5)(x)
    outputs = layers.Dense(1, activation="sigmoid", bias_initializer="ones")(x)
    return keras.Model(backbone.input, outputs)


def assert_imported_as_they_meant_it(model, path: Path, architecture: str) -> None:
    for layer in model.layers:  # normalize by real pictures, so that they do not all look alike
        if hasattr(layer, "momentum"):
            layer.momentum = 0.0
    model(faces(256, "nearest").astype(np.float32) / 255, training=True)
    model.save_weights(path)
    detector = import_published(path)
    assert detector.architecture.name == architecture
    pixels = faces(256, detector.resize_filter)
    probability_of_real = model.predict_on_batch(pixels.astype(np.float32) / 255)[:, 0]
    assert np.ptp(probability_of_real) > 1e-3, "all pictures look alike: nothing would be noticed"
    np.testing.assert_allclose(scored(detector, pixels), 1 - probability_of_real, atol=1e-4)


@pytest.mark.slow
def test_xception_as_students_fine_tuned_it(cache, tmp_path):
    keras = keras_on_torch()
    backbone = keras.applications.Xception(
        weights=None, include_top=False, input_shape=(256, 256, 3)
    )
    path = tmp_path / "xception_finetuned.weights.h5"
    assert_imported_as_they_meant_it(with_their_head(backbone), path, "xception")


@pytest.mark.slow
def test_efficientnet_as_students_fine_tuned_it(cache, tmp_path, monkeypatch):
    """Theirs began with weights="imagenet", which builds another graph: made without a network by
    handing out a file of random weights in the place of the download."""
    keras = keras_on_torch()
    plain = keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(256, 256, 3)
    )
    [normalization] = [la for la in plain.layers if isinstance(la, keras.layers.Normalization)]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalization.load_own_variables({"0": mean, "1": std, "2": 0})  # as Keras' own file has it
    file = tmp_path / "efficientnetb0_notop.weights.h5"
    plain.save_weights(file)
    monkeypatch.setattr(
        "keras.src.applications.efficientnet.file_utils.get_file", lambda *a, **k: str(file)
    )
    backbone = keras.applications.EfficientNetB0(
        weights="imagenet", include_top=False, input_shape=(256, 256, 3)
    )
    assert len(backbone.layers) == len(plain.layers) + 1, "the layer that makes the difference"
    path = tmp_path / "efficientnet_finetuned.weights.h5"
    assert_imported_as_they_meant_it(with_their_head(backbone), path, "efficientnet_b0")


def test_a_file_with_their_name_and_other_layers_is_refused(cache, tmp_path):
    keras_on_torch()
    path = tmp_path / "xception_finetuned.weights.h5"
    ARCHITECTURES["meso4"].build().save_weights(path)
    with pytest.raises(UserError, match="not the weights of a xception with the usual head"):
        import_published(path)


# ---- Hugging Face's ViT classifiers


def vit_classifier(labels: dict[int, str], seed: int = 0, **settings):
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        hidden_size=192,
        num_attention_heads=3,
        intermediate_size=768,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
        **settings,
    )
    model = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():  # random weights of a trained network's size, so that pictures differ
        for value in model.parameters():
            if value.ndim > 1:
                value.mul_(2.5)
    return model


def their_probability(model, pixels: np.ndarray, output: int) -> np.ndarray:
    import torch

    scaled = torch.from_numpy((pixels.astype(np.float32) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    with torch.no_grad():
        return model(scaled).logits.softmax(-1)[:, output].numpy()


def test_their_own_pixel_scaling_is_kept(cache, tmp_path):
    folder = tmp_path / "vit_finetuned"
    vit_classifier({0: "fake", 1: "real"}).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}'
    )
    scaling = find_published(folder).architecture.scaling
    assert scaling.mean == pytest.approx((123.675, 116.28, 103.53))
    assert scaling.std == pytest.approx((58.395, 57.12, 57.375))


@pytest.mark.parametrize(
    ("stored", "mean", "std"),
    [
        ('{"do_normalize": false}', 0, 255),
        ('{"do_rescale": false, "image_mean": [1, 1, 1], "image_std": [2, 2, 2]}', 1, 2),
        ('{"rescale_factor": 0.1, "image_mean": [1, 1, 1], "image_std": [2, 2, 2]}', 10, 20),
    ],
)
def test_scaling_that_is_switched_off_stays_off(tmp_path, stored, mean, std):
    folder = tmp_path / "vit_finetuned"
    vit_classifier({0: "fake", 1: "real"}).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(stored)
    scaling = find_published(folder).architecture.scaling
    assert (scaling.mean, scaling.std) == (pytest.approx((mean,) * 3), pytest.approx((std,) * 3))


@pytest.mark.slow
def test_an_import_is_made_anew_where_any_of_its_files_is_another(cache, tmp_path):
    folder = tmp_path / "vit_finetuned"
    vit_classifier({0: "fake", 1: "real"}).save_pretrained(folder)
    first = import_published(folder)
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    second = import_published(folder)
    assert first.folder != second.folder
    assert first.architecture.scaling != second.architecture.scaling


def save_adapter(folder: Path, **settings) -> Path:
    """Write a LoRA adapter with random weights as peft does, and `base` beside it."""
    import peft

    base = folder.with_name("base")
    vit_classifier({0: "fake", 1: "real"}).save_pretrained(base)
    config = peft.LoraConfig(
        target_modules=["q_proj", "v_proj"], init_lora_weights=False, **settings
    )
    adapted = peft.get_peft_model(vit_classifier({0: "fake", 1: "real"}), config).eval()
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("names", ["of today", "of published adapters"])
def test_an_adapter_is_merged_into_its_base(cache, tmp_path, names):
    from safetensors.torch import load_file, save_file

    adapted = save_adapter(tmp_path / "vit_lora", modules_to_save=["classifier"], lora_alpha=16)
    if names == "of published adapters":
        file = tmp_path / "vit_lora" / "adapter_model.safetensors"
        renamed = {
            name.replace(".layers.", ".encoder.layer.")
            .replace("attention.q_proj", "attention.attention.query")
            .replace("attention.v_proj", "attention.attention.value"): value
            for name, value in load_file(file).items()
        }
        assert any("attention.attention.query.lora_A" in name for name in renamed)
        save_file(renamed, file)
    pixels = faces(224, "area")
    expected = their_probability(adapted, pixels, 0)
    plain = their_probability(vit_classifier({0: "fake", 1: "real"}), pixels, 0)
    assert np.abs(expected - plain).max() > 1e-3, "the adapter changes nothing"
    detector = import_published(tmp_path / "vit_lora")
    np.testing.assert_allclose(scored(detector, pixels), expected, atol=1e-4)


def test_adapters_that_would_be_merged_wrongly_are_refused(cache, tmp_path):
    save_adapter(tmp_path / "headless")
    with pytest.raises(UserError, match="no classifier, so its verdicts would be"):
        import_published(tmp_path / "headless")
    save_adapter(tmp_path / "dora", modules_to_save=["classifier"], use_dora=True)
    with pytest.raises(UserError, match="of the kind use_dora cannot be imported"):
        import_published(tmp_path / "dora")


def test_pickles_and_other_networks_are_refused(cache, tmp_path):
    folder = tmp_path / "vit_finetuned"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 192}')
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(UserError, match=r"model\.safetensors is missing; weights in pickles"):
        import_published(folder)
    (folder / "config.json").write_text('{"hidden_size": 1234}')
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no ViT classifier that is known"):
        import_published(folder)
    (folder / "config.json").write_text('{"hidden_size": 192}')
    for content in (b"", b"never a header", b"\x02\0\0\0\0\0\0\0[]"):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"model\.safetensors: these weights cannot be read"):
            import_published(folder)
    classifier = vit_classifier({0: "real", 1: "fake"})
    classifier.vit.save_pretrained(folder)
    with pytest.raises(UserError, match="no classifier"):
        import_published(folder)
    other = vit_classifier({0: "real", 1: "fake"}, image_size=96)
    other.save_pretrained(folder)
    with pytest.raises(UserError, match="not the weights of a vit_tiny_patch16_224"):
        import_published(folder)
