"""Passes of the network over reference arrays: inference and training, without random numbers."""

import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from data_pipelines.schema import MODALITIES
from star_jax.config import Config, with_values
from star_jax.golden import reference_arrays
from star_jax.losses import build_losses
from star_jax.models import StyleSources, build_model
from star_jax.weights.entries import NEVER_USED

FOLDER = pathlib.Path(__file__).parent


def inference_program(config: Config, modality: str | None) -> Any:
    """Returns inference as a function of variables, frames and keypoints.

    It returns the network's output, and the attention and pooling weights, which the network sows.
    """
    apply = functools.partial(build_model(config.model).apply, modality=modality, train=False)
    return jax.jit(functools.partial(apply, mutable=["intermediates"]))


def training_program(
    config: Config,
    variables_of: Callable[[Any], Any],
    frames: Float32[Array, "B T 2 H W 3"],
    keypoints: Float32[Array, "B T 2 17 3"],
) -> Any:
    """Returns a training pass over B pairs of tracklets, two of each identity, as a function.

    Args:
      config: the experiment.
      variables_of: takes what is trained, returns the network's variables.
      frames: float32[B, T, 2, H, W, 3].
      keypoints: float32[B, T, 2, 17, 3].

    Returns:
      A jitted function of what is trained. It returns the gradients, and a tuple of losses, output
      and new running statistics.
    """
    model, losses = build_model(config.model), build_losses(config)
    batch: Any = {"labels": jnp.arange(len(frames)) // 2}
    index = np.arange(np.prod(frames.shape[:3]))
    style = StyleSources(same=jnp.array(index), other=jnp.array(index ^ 1))

    def loss(trained: Any) -> tuple[jax.Array, Any]:
        output, updates = model.apply(
            variables_of(trained),
            frames,
            keypoints,
            train=True,
            style=style,
            mutable=["batch_stats"],
        )
        values: Any = losses.apply({}, output, batch, jnp.int32(0))
        return values["total"], (values, output, updates["batch_stats"])

    return jax.jit(jax.grad(loss, has_aux=True))


def without_dropout(config: Config, num_identities: int, **model: Any) -> Config:
    """Returns the config with a number of identities, no dropout, and changes of the network."""
    changes = {"num_identities": num_identities, "dropout_rate": 0.0, "attention_dropout_rate": 0.0}
    return with_values(config, {f"model.{name}": x for name, x in {**changes, **model}.items()})


def state_dict(seed: int, num_identities: int) -> dict[str, np.ndarray]:
    """Returns the parameters of a fixture, by the authors' names, but those that are not used."""
    shapes = json.loads((FOLDER / "state_dict.json").read_text(encoding="utf-8"))
    for name in ("local_classifier.weight", "global_classifier.weight", "pose_classifier.weight"):
        shapes[name][0] = num_identities
    shapes["pose_classifier.bias"] = [num_identities]
    return {
        name: parameter(seed, name, tuple(shape))
        for name, shape in shapes.items()
        if not any(re.search(pattern, name) for pattern in NEVER_USED)
    }


# Large, and the same for any number of identities but for the classifiers.
parameter = functools.cache(reference_arrays.parameter)


def inputs(seed: int, prefix: str, modality: str | None, *shape: int) -> tuple[Array, ...]:
    """Returns frames and keypoints of a fixture, of one modality or of pairs.

    Args:
      seed: of the fixture.
      prefix: of the arrays' names.
      modality: None for pairs.
      *shape: number of tracklets and of frames, height and width of these.

    Returns:
      float32[B, T, H, W, 3] and float32[B, T, 17, 3]; for pairs with an axis 2 of length 2.
    """
    if modality is None:
        visible, infrared = (inputs(seed, prefix, name, *shape) for name in MODALITIES)
        return tuple(jnp.stack(both, axis=2) for both in zip(visible, infrared, strict=True))
    frames = reference_arrays.frames(seed, f"{prefix}frames.{modality}", *shape)
    keypoints = reference_arrays.keypoints(seed, f"{prefix}keypoints.{modality}", *shape)
    return jnp.asarray(frames.transpose(0, 1, 3, 4, 2)), jnp.asarray(keypoints)
