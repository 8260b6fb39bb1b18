"""Meso4 and MesoInception4 are the published networks, and say fake where those say not real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.keras_engine.training import keras  # with the settings that training runs under
from tests.shared import SHARED, needs_shared

import tensorflow as tf  # isort: skip
from models import ARCHITECTURES  # isort: skip
from models.meso import BranchNormalization, meso4  # isort: skip
from models.published import load_reversed  # isort: skip

REPOSITORY = Path(__file__).resolve().parent.parent
PUBLISHED = {
    "Meso4_DF": "meso4",
    "Meso4_F2F": "meso4",
    "MesoInception_DF": "mesoinception4",
    "MesoInception_F2F": "mesoinception4",
}


@pytest.mark.parametrize(
    ("name", "trainable", "total"), [("meso4", 27_977, 28_073), ("mesoinception4", 28_615, 28_725)]
)
def test_the_published_numbers_of_parameters(name, trainable, total):
    model = ARCHITECTURES[name].build()
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == trainable
    assert model.count_params() == total
    assert model.input_shape == (None, 256, 256, 3)
    assert model.output_shape == (None, 1)


@pytest.mark.parametrize("name", ["meso4", "mesoinception4"])
def test_the_network_ends_in_a_logit(name):
    assert ARCHITECTURES[name].build().layers[-1].activation is keras.activations.linear


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize(
    "name",
    [
        "Meso4_DF",
        "MesoInception_F2F",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("Meso4_F2F", "MesoInception_DF")),
    ],
)
def test_the_published_files_give_the_published_outputs_from_the_command_line(name, tmp_path):
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, f"infer_{PUBLISHED[name]}.py", SHARED / "mesonet" / "images"]
    command += ["--weights", SHARED / "mesonet" / f"{name}.h5", "--output", output]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    scored = {Path(row["path"]).name: row["fake_probability"] for row in rows}
    expected = json.loads((SHARED / "mesonet" / "expected.json").read_text())
    assert scored.keys() == expected.keys()
    for picture, outputs in expected.items():
        assert scored[picture] == pytest.approx(1 - outputs[name], abs=1e-3), picture
    # A test that a label order turned round would not pass: nearly all real pictures are real.
    real = [row["verdict"] for row in rows if "real" in Path(row["path"]).name.split("_")]
    assert real.count("real") >= 6


@needs_shared
def test_a_published_file_of_the_other_network_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "infer_meso4.py", SHARED / "mesonet" / "images", "--weights",
         SHARED / "mesonet" / "MesoInception_DF.h5"],
        cwd=REPOSITORY,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "MesoInception_DF.h5" in last
    assert "scores with meso4" in last
    assert "Traceback" not in done.stderr


@needs_shared
def test_a_file_of_the_other_network_does_not_load():
    with pytest.raises(ValueError):
        load_reversed(meso4(), SHARED / "mesonet" / "MesoInception_DF.h5")


def both_normalizations(widths: list[int]) -> tuple:
    """BranchNormalization, and Keras' own for the concatenation, with the same variables."""
    random = np.random.default_rng(0)
    branches = BranchNormalization()
    branches.build([(None, 6, 5, width) for width in widths])
    keras_own = keras.layers.BatchNormalization()
    keras_own.build((None, 6, 5, sum(widths)))
    channels = sum(widths)
    values = [random.uniform(0.5, 2, channels) for _ in range(4)]
    for layer in (branches, keras_own):
        layer.set_weights(values)
    return branches, keras_own


def split(x: np.ndarray, widths: list[int]) -> list:
    return [tf.constant(part) for part in np.split(x, np.cumsum(widths)[:-1], axis=-1)]


@pytest.mark.parametrize("widths", [[7], [1, 4, 4, 2]])
def test_branch_normalization_trains_like_keras_own_on_the_concatenation(widths):
    branches, keras_own = both_normalizations(widths)
    assert [v.name for v in branches.weights] == [v.name for v in keras_own.weights]
    random = np.random.default_rng(1)
    for _ in range(3):  # the moving statistics of several steps
        # As many values a channel as where Meso4 has fewest, in a batch of 16. TensorFlow's kernel
        # divides the variance that it hands out by one less than that, which Keras does not.
        x = random.normal(3, 2, (16, 32, 32, sum(widths))).astype(np.float32)
        towards = random.normal(size=x.shape).astype(np.float32) / 128
        parts, whole = split(x, widths), tf.constant(x)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([*parts, whole])
            ours = tf.concat(branches(parts, training=True), -1)
            theirs = keras_own(whole, training=True)
            our_loss = tf.reduce_sum(ours * towards)
            their_loss = tf.reduce_sum(theirs * towards)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        our_gradients = tape.gradient(our_loss, [v.value for v in branches.trainable_variables])
        their_gradients = tape.gradient(
            their_loss, [v.value for v in keras_own.trainable_variables]
        )
        assert len(our_gradients) == 2
        for our_gradient, their_gradient in zip(our_gradients, their_gradients, strict=True):
            np.testing.assert_allclose(our_gradient, their_gradient, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            tf.concat(tape.gradient(our_loss, parts), -1),
            tape.gradient(their_loss, whole),
            atol=1e-4,
        )
        for our_weight, their_weight in zip(branches.weights, keras_own.weights, strict=True):
            np.testing.assert_allclose(our_weight, their_weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("widths", [[7], [1, 4, 4, 2]])
@pytest.mark.parametrize("frozen", [False, True])
def test_branch_normalization_infers_like_keras_own(widths, frozen):
    branches, keras_own = both_normalizations(widths)
    branches.trainable = keras_own.trainable = not frozen
    x = np.random.default_rng(1).normal(3, 2, (4, 6, 5, sum(widths))).astype(np.float32)
    before = branches.get_weights()
    ours = tf.concat(branches(split(x, widths), training=frozen), -1)
    np.testing.assert_allclose(ours, keras_own(x, training=frozen), atol=1e-4)
    for now, then in zip(branches.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
