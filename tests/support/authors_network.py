"""A state dict by the authors' names, and the config of a network that it fits."""

import functools
import json
import re

import jax
import numpy as np

from configs import star_hitsz_vcm
from star_jax import verify
from star_jax.models import build_model

# The authors' names and shapes; the tiny network uses one block per stage and a 32nd of the
# width.
SHRINK = 32
LATER_BLOCK = re.compile(r"\.layer\d\.[1-9]")
NUM_IDENTITIES, WIDTH, C = 5, 64 // SHRINK, 2048 // SHRINK


def model_config(**changes):
    config = star_hitsz_vcm.get_config().model
    config.backbone_options.update({"stage_sizes": (1, 1, 1, 1), "width": WIDTH})
    config.update({"num_identities": NUM_IDENTITIES, **changes})
    return config


@functools.cache
def state_dict():
    """Returns a random state dict of the tiny network with the authors' names."""
    shapes = json.loads((verify.FOLDER / "state_dict.json").read_text())
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in shapes.items():
        if LATER_BLOCK.search(name):
            continue
        if name.startswith("fc1") or "weight_ih" in name:
            shape = [size // SHRINK if size > 64 else size for size in shape]
        else:
            shape = [size // SHRINK if size >= 64 else size for size in shape]
        if "_classifier" in name:
            shape[0] = NUM_IDENTITIES
        arrays[name] = rng.normal(size=shape).astype(np.float32)
    return arrays


def shapes_of(tree):
    return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)


def needed(config):
    frames = np.zeros((1, 2, 2, 64, 48, 3), np.float32)
    keypoints = np.ones((1, 2, 2, 17, 3), np.float32)
    model = build_model(config)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), frames, keypoints))
