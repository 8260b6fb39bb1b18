"""Meso4 and MesoInception4, two small networks that look at the middle scale of a face.

Afchar, Nozick, Yamagishi, Echizen: "MesoNet: a Compact Facial Video Forgery Detection Network",
WIFS 2018. Layers as published: 27,977 and 28,615 trainable parameters. One thing is turned round:
the published networks end in a sigmoid that means P(real); these end in the logit of P(fake).
"""

import keras
from keras import layers


def meso4() -> keras.Model:
    """Four convolutions and two dense layers. (N, 256, 256, 3) in 0…1 → (N, 1) logits of fake."""
    pixels = keras.Input((256, 256, 3), name="pixels")
    x = _convolution(pixels, filters=8, kernel=3, pool=2)
    x = _convolution(x, filters=8, kernel=5, pool=2)
    return _tail(pixels, x, name="meso4")


def mesoinception4() -> keras.Model:
    """Meso4 with two inception modules of dilated convolutions in the place of the first two
    convolutions. (N, 256, 256, 3) in 0…1 → (N, 1) logits of fake."""
    pixels = keras.Input((256, 256, 3), name="pixels")
    x = _inception(pixels, filters=(1, 4, 4, 2))
    x = _inception(x, filters=(2, 4, 4, 2))
    return _tail(pixels, x, name="mesoinception4")


def load_published_weights(model: keras.Model, path) -> None:
    """Load one of the authors' four .h5 files, whose last layer means P(real), into `model`.

    1 - sigmoid(x) = sigmoid(-x), so the last layer's sign is turned and the model's logit means
    fake, here and nowhere else. Raises ValueError where the file holds another network's layers.
    """
    model.load_weights(path)
    last = model.layers[-1]
    last.set_weights([-weight for weight in last.get_weights()])


def _convolution(x, filters: int, kernel: int, pool: int):
    x = layers.Conv2D(filters, kernel, padding="same", activation="relu")(x)
    return _normalize_and_pool(x, pool)


def _inception(x, filters: tuple[int, int, int, int]):
    a, b, c, d = filters
    branches = [layers.Conv2D(a, 1, padding="same", activation="relu")(x)]
    for width, dilation in ((b, 1), (c, 2), (d, 3)):
        branch = layers.Conv2D(width, 1, padding="same", activation="relu")(x)
        branches.append(
            layers.Conv2D(
                width, 3, dilation_rate=dilation, padding="same", activation="relu"
            )(branch)
        )
    return _normalize_and_pool(layers.Concatenate()(branches), pool=2)


def _normalize_and_pool(x, pool: int):
    x = FusedBatchNormalization()(x)
    return layers.MaxPooling2D(pool, padding="same")(x)


def _tail(pixels, x, name: str) -> keras.Model:
    x = _convolution(x, filters=16, kernel=5, pool=2)
    x = _convolution(x, filters=16, kernel=5, pool=4)
    x = layers.Flatten()(x)
    x = layers.Dropout(0.5)(x)
    x = layers.Dense(16)(x)
    x = layers.LeakyReLU(negative_slope=0.1)(x)
    x = layers.Dropout(0.5)(x)
    return keras.Model(pixels, layers.Dense(1, name="logit")(x), name=name)


class FusedBatchNormalization(layers.BatchNormalization):
    """Keras' batch normalization, trained with TensorFlow's fused kernel where there is one.

    Keras 3 composes the training step of this layer from single operations; on a CPU the fused
    kernel takes a quarter of their time on Meso4's first layer, and the network trains about 1.7
    times as fast. Variables and inference are Keras' own.
    """

    def call(self, inputs, training=None, mask=None):
        if not training or not self.trainable or keras.backend.backend() != "tensorflow":
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma, self.beta, epsilon=self.epsilon, is_training=True
        )
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs
