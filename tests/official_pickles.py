"""Pickles in the layout of NVIDIA's StyleGAN3 files, written by Python's and torch's own pickling.

What such a file refers to (`torch_utils`, `dnnlib`) exists only while it is written.
"""

import io
import pickle
import sys
import types
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

SMALL = {
    "z_dim": 8,
    "c_dim": 0,
    "w_dim": 8,
    "img_resolution": 32,
    "img_channels": 3,
    "mapping_kwargs": {"num_layers": 2},
    "channel_base": 128,
    "channel_max": 8,
    "num_layers": 4,
    "num_critical": 2,
}
_BUFFERS = {"w_avg", "transform", "freqs", "phases", "magnitude_ema", "up_filter", "down_filter"}


def _reconstruct_persistent_obj(meta):
    raise AssertionError("a test's pickle was loaded the usual way")


class EasyDict(dict):
    pass


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
EasyDict.__module__ = "dnnlib.util"


class Persistent:
    """An object whose class's source travels in the pickle; `state` are its attributes."""

    def __init__(self, class_name: str, state: dict, source: str = "", meta: type = dict):
        self.meta = meta(
            type="class", version=6, module_src=source, class_name=class_name, state=state
        )

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


def dump(value: Any, protocol: int = 4) -> bytes:
    """`value` pickled as NVIDIA's training does it."""
    modules = {name: types.ModuleType(name) for name in ("torch_utils", "dnnlib")}
    for function in (_reconstruct_persistent_obj, EasyDict):
        module = types.ModuleType(function.__module__)
        setattr(module, function.__name__, function)
        modules[function.__module__] = module
    stream = io.BytesIO()
    with mock.patch.dict(sys.modules, modules):
        pickle.Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def networks(
    arguments: dict, weights: dict[str, torch.Tensor], source: str = "", meta: type = dict
) -> dict[str, Any]:
    """What an official file holds, with a small D that is not needed."""
    generator = module("Generator", weights, source, meta)
    generator.meta["state"] |= {"_init_args": (), "_init_kwargs": meta(arguments)}
    discriminator = module("Discriminator", {"b4.fc.weight": torch.ones(2, 2)}, source, meta)
    discriminator.meta["state"]["_modules"]["plain"] = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    return {
        "G": None,
        "D": discriminator,
        "G_ema": generator,
        "training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset"),
        "augment_pipe": None,
    }


def module(class_name: str, weights: dict[str, Any], source: str, meta: type) -> Persistent:
    """A module with its sub-modules, as the names of its state dict have them."""
    own = {name: value for name, value in weights.items() if "." not in name}
    children: dict[str, dict] = {}
    for name, value in weights.items():
        if "." in name:
            child, rest = name.split(".", 1)
            children.setdefault(child, {})[rest] = value
    state = dict(nn.Module().__dict__) | {
        "_parameters": {
            name: nn.Parameter(value) for name, value in own.items() if name not in _BUFFERS
        },
        "_buffers": {name: value for name, value in own.items() if name in _BUFFERS},
        "_modules": {
            name: module(name.title(), inner, source, meta) for name, inner in children.items()
        },
        "in_size": np.array([36, 36]),
        "up_factor": np.int64(2),
    }
    return Persistent(class_name, state, source, meta)
