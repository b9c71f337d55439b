"""A network as a function that runs without this library: serialized StableHLO, by `jax.export`.

JAX guarantees that such a file runs with versions of JAX that are up to 6 months newer and up to 3
weeks older than the one that wrote it. It is for deployment; `archive.py` is for archiving.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from data_pipelines.schema import NUM_JOINTS
from star_jax import augment
from star_jax.models import Star, StarOutput

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(
    model: Star,
    variables: Mapping[str, Any],
    modality: str,
    *,
    frame_size: tuple[int, int],
    clip_length: int,
) -> bytes:
    """Returns the serialized function from clips of one modality to embeddings.

    The function takes frames, uint8[b, T, H, W, 3], and, if the network uses skeletons, keypoints,
    float32[b, T, 17, 3] (x, y in pixels of the frame, confidence); it returns float32[b, C], rows
    of length 1. b is any number. Call it with `jax.jit(jax.export.deserialize(content).call)`, on
    a CPU, an NVIDIA GPU or a TPU.

    The weights are constants in it, so that it is a single file to distribute; it contains only
    those that it uses: neither the classifiers' nor the other modality's.

    Args:
      model: the network.
      variables: {"params": ..., "batch_stats": ...}.
      modality: "visible" or "infrared".
      frame_size: H and W, pixels.
      clip_length: T.
    """
    constants = jax.device_get(variables)  # on a mesh, they would bind the function to its size

    def embed(frames: jax.Array, keypoints: jax.Array | None = None) -> jax.Array:
        frames = augment.normalize(frames)
        output = model.apply(constants, frames, keypoints, modality=modality, train=False)
        assert isinstance(output, StarOutput)
        return output.embedding

    (batch,) = jax.export.symbolic_shape("b")
    clips = (batch, clip_length)
    inputs = [jax.ShapeDtypeStruct((*clips, *frame_size, 3), jnp.uint8)]
    if model.uses_skeletons:
        inputs.append(jax.ShapeDtypeStruct((*clips, NUM_JOINTS, 3), jnp.float32))
    return bytes(jax.export.export(jax.jit(embed), platforms=PLATFORMS)(*inputs).serialize())
