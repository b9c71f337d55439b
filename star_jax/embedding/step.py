"""The jitted embedding step over a mesh of devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float32, UInt8

from star_jax import augment
from star_jax.distributed.parallel import split_rows
from star_jax.models import Star, StarOutput


@functools.cache  # evaluations during training share one compiled program
def make_embed_step(
    model: Star, modality: str, mesh: Mesh, flip: bool = False
) -> Callable[..., Float32[Array, "B C"]]:
    """Returns the jitted embedding step of a modality.

    Args:
      model: the network.
      modality: "visible" or "infrared".
      mesh: the device mesh.
      flip: whether to average the embeddings of each clip and its mirror image.

    Returns:
      A function of variables, frames uint8[B, T, H, W, 3] and keypoints float32[B, T, 17, 3] that
      returns the embeddings, float32[B, C], split over the devices by rows. Their length is 1, and
      less if they are averages.
    """

    def embed(variables: Any, frames: jax.Array, keypoints: jax.Array) -> jax.Array:
        frames = augment.normalize(frames)
        output = model.apply(variables, frames, keypoints, modality=modality, train=False)
        assert isinstance(output, StarOutput)
        return output.embedding

    @functools.partial(
        jax.jit,
        in_shardings=(None, split_rows(mesh), split_rows(mesh)),
        out_shardings=split_rows(mesh),
    )
    def embed_step(
        variables: Any, frames: UInt8[Array, "B T H W 3"], keypoints: Float32[Array, "B T 17 3"]
    ) -> Float32[Array, "B C"]:
        embedding = embed(variables, frames, keypoints)
        if flip:
            mirrored = embed(variables, *augment.mirror(frames, keypoints))
            embedding = (embedding + mirrored) / 2
        return embedding

    return embed_step
