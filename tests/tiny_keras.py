"""A network with a backbone that trains in a moment, and a program that does it and can be killed.

    python -m tests.tiny_keras DATA RUN '{"epochs": 3, "head_epochs": 1}'

RUN may hold `{rank}`, for a folder of each process. Further settings beside those of the recipe:
`resume`; `pretrained`; `cpus`, into as many devices TensorFlow divides the processor; `killed`,
after how many calls of `killed_at` ("batch" or "epoch") it ends with kill -9. Each device notes in
`seen.<number>` beside RUN which pictures it was fed.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

from models import MINUS_ONE_TO_ONE, Architecture
from pipeline.data.dataset import load_dataset
from pipeline.feeding.augmentation import NO_AUGMENTATION
from pipeline.feeding.batches import Batches
from pipeline.feeding.engine import Plan, Recipe, StartingPoint

ARCHITECTURE = Architecture("tiny", "tests.tiny_keras:tiny", 64, MINUS_ONE_TO_ONE, "NHWC")
WATCHED = Architecture("tiny", "tests.tiny_keras:watched", 64, MINUS_ONE_TO_ONE, "NHWC")
SETTINGS = {
    "epochs": 3,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "patience": 9,
    "dropout": 0.2,
    "seed": 0,
    "precision": "fp32",
    "target_accuracy": None,
    "augmentation": NO_AUGMENTATION,
    "resize_filter": "area",
}
OF_THE_HEAD = {"head_epochs": 1, "head_learning_rate": 1e-3}


def tiny(dropout: float = 0.0):
    """Two convolutions with batch normalization and the head of models/xception.py."""
    return _network(dropout, watch=lambda x: x)


def watched(dropout: float = 0.0):
    """The same, and each picture that it is trained with is noted in `seen`."""
    return _network(dropout, watch=_witness())


def _network(dropout: float, watch):
    import keras
    from keras import layers

    from models.xception import with_head

    pixels = keras.Input((64, 64, 3), name="pixels")
    x = watch(pixels)
    for width in (6, 12):
        x = layers.Conv2D(width, 3, strides=2, padding="same")(x)
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
    return with_head(keras.Model(pixels, x), dropout, name="tiny")


seen: dict[int, list[int]] = {}  # device → fingerprints of the pictures that it was trained with


def _witness():
    import keras

    def note(device, sums):
        seen.setdefault(int(device), []).extend(round(float(one)) for one in sums)

    class Witness(keras.layers.Layer):
        def call(self, x, training=False):
            if training and keras.backend.backend() == "tensorflow":
                import tensorflow as tf

                context = tf.distribute.get_replica_context()
                sums = tf.reduce_sum((x + 1) * 127.5, (1, 2, 3))
                tf.py_function(note, [context.replica_id_in_sync_group, sums], [])
            elif training and x.device.type != "meta":  # Keras on torch looks at shapes with it
                note(os.environ.get("RANK", 0), ((x + 1) * 127.5).sum((1, 2, 3)))
            return x

    return Witness()


def fingerprints(data: Path) -> list[int]:
    """What `seen` holds for each training picture."""
    dataset = load_dataset(data)
    batches = Batches(ARCHITECTURE, Recipe(**SETTINGS), dataset, workers=1)
    pictures, _ = batches.augmented(0, range(len(dataset.train)))
    return [int(picture.sum()) for picture in pictures]


def given_weights(model) -> None:
    """Weights such as a training leaves behind; batch normalization does something."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        is_normalization = "normalization" in layer.name
        low, high = (0.5, 1.5) if is_normalization else (-0.3, 0.3)
        layer.set_weights([random.uniform(low, high, w.shape) for w in layer.get_weights()])


def train(data: Path, run: Path, architecture=ARCHITECTURE, resume=False, pretrained=True, **given):
    """Train the network on the pictures of `data`; returns the Keras network of the best epoch."""
    from pipeline.keras_engine import training as keras_training

    recipe = keras_training.KerasRecipe(**SETTINGS | OF_THE_HEAD | given)
    batches = Batches(ARCHITECTURE, recipe, load_dataset(data), 1, keras_training.share())
    start = StartingPoint("scratch", None)
    if pretrained:
        start = StartingPoint("given", given_weights)
    return keras_training.fit(Plan(architecture, recipe, start), batches, run, resume)


def _kill_after(owner, name: str, number: int) -> None:
    original, calls = getattr(owner, name), []

    def replacement(*arguments, **named):
        result = original(*arguments, **named)
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, replacement)


def main() -> None:
    data, run, settings = sys.argv[1:]
    settings = json.loads(settings)
    run = Path(run.format(rank=os.environ.get("RANK", 0)))
    from pipeline.keras_engine import callbacks as keras_callbacks
    from pipeline.keras_engine import training as keras_training

    if cpus := settings.pop("cpus", 0):
        import tensorflow as tf

        [processor] = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * cpus
        tf.config.set_logical_device_configuration(processor, parts)
    engine = keras_training.KerasEngine("cpu")
    number, moment = settings.pop("killed", 0), settings.pop("killed_at", "")
    if moment == "batch":
        _kill_after(keras_callbacks.ProgressBar, "on_train_batch_end", number)
    if moment == "epoch":
        _kill_after(keras_callbacks, "replace_folder", number)
    train(Path(data), run, WATCHED, **settings)
    for device, pictures in seen.items():
        run.with_name(f"seen.{device}").write_text(json.dumps(pictures))
    print(f"{engine.devices()} on {engine.device_in_words()}")


if __name__ == "__main__":
    from tests import tiny_keras  # as the catalogue of this file's networks imports it

    tiny_keras.main()
