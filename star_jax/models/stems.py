"""A stem for each modality in front of layers that both share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Stem = Callable[[jax.Array], jax.Array]


def apply_stems(
    frames: jax.Array, modality: str | None, visible: Stem, infrared: Stem
) -> jax.Array:
    """Returns each modality's stem applied to its frames, ordered as the frames are.

    Args:
      frames: float[B, T, H, W, 3] of one modality, or float[B, T, 2, H, W, 3] of both.
      modality: "visible" or "infrared"; None for frames of both.
      visible: the stem of visible frames, float[M, H, W, 3] to float[M, ...].
      infrared: the stem of infrared frames.

    Returns:
      float[N, ...], N = B * T or B * T * 2.

    Raises:
      ValueError: another modality, or frames whose axes do not fit it.
    """
    if modality not in ("visible", "infrared", None):
        raise ValueError(f"modality is {modality!r}: use 'visible', 'infrared' or None")
    expected = ("B", "T", 2, "H", "W", 3) if modality is None else ("B", "T", "H", "W", 3)
    sizes = zip(frames.shape, expected, strict=False)
    if frames.ndim != len(expected) or any(
        isinstance(want, int) and size != want for size, want in sizes
    ):
        axes = ", ".join(map(str, expected))
        raise ValueError(f"frames of modality {modality} are {frames.shape}: use [{axes}]")
    flat = lambda x: x.reshape(-1, *x.shape[-3:])  # noqa: E731
    if modality == "visible":
        return visible(flat(frames))
    if modality == "infrared":
        return infrared(flat(frames))
    maps = jnp.stack([visible(flat(frames[:, :, 0])), infrared(flat(frames[:, :, 1]))], axis=1)
    return maps.reshape(-1, *maps.shape[2:])
