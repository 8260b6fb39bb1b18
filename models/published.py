"""Keras weights that others have published, whose last layer means P(real)."""

import keras


def load_reversed(model: keras.Model, path) -> None:
    """Load weights whose logit means real into a network of the same layers.

    1 - sigmoid(x) = sigmoid(-x), so the last layer's sign is turned and the network's logit means
    fake, here and nowhere else. Raises ValueError where the file holds another network's layers.
    """
    model.load_weights(path)
    last = model.layers[-1]
    last.set_weights([-weight for weight in last.get_weights()])
