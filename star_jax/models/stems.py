"""Stems: each modality has its own, and the rest of a backbone is shared."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float


def apply_stems(
    frames: Float[Array, "*axes H W 3"],
    modality: str | None,
    visible: Callable[[Float[Array, "N H W 3"]], Float[Array, "N ..."]],
    infrared: Callable[[Float[Array, "N H W 3"]], Float[Array, "N ..."]],
) -> Float[Array, "N ..."]:
    """Applies each modality's stem to its frames; returns the results in the order of the frames.

    Args:
      frames: float32[B, T, H, W, 3] of one modality, or float32[B, T, 2, H, W, 3] of both (axis 2:
        visible, infrared).
      modality: "visible", "infrared", or None for both.
      visible: the stem of visible frames, float32[M, H, W, 3] to float[M, ...].
      infrared: the stem of infrared frames, likewise.

    Returns:
      float[N, ...], where N = B * T, or B * T * 2 for both modalities.

    Raises:
      ValueError: the modality is unknown, or the shape of the frames does not fit it.
    """
    stems = {"visible": visible, "infrared": infrared}
    if modality is not None and modality not in stems:
        raise ValueError(f"modality is {modality!r}: use 'visible', 'infrared' or None")
    fits = frames.ndim == 5 if modality else frames.ndim == 6 and frames.shape[2] == 2
    if not fits:
        expected = "[B, T, H, W, 3]" if modality else "[B, T, 2, H, W, 3]"
        raise ValueError(
            f"frames of modality {modality!r} have shape {frames.shape}: use {expected}"
        )

    def flat(x: Array) -> Array:
        return x.reshape(-1, *x.shape[-3:])

    if modality:
        return stems[modality](flat(frames))
    outputs = [stem(flat(frames[:, :, i])) for i, stem in enumerate(stems.values())]
    return jnp.stack(outputs, axis=1).reshape(-1, *outputs[0].shape[1:])
