"""Augmentation of frames on the device: normalization, crop and flip, erasing, style.

Augmentations are components: `config.augment.parts` has keys of `AUGMENTATIONS` or
`package.module:object`, in the order in which training applies them.

Every function takes a batch of tracklets, can be jitted and draws from the key it is given.
Geometry and erasing are drawn once per tracklet, because a camera does not jump between two frames;
`per_frame` draws them for every frame, as the authors' code does.

Pixel convention: the center of the top left pixel is (0, 0), so that the joint at (x, y) lies on
`frames[..., y, x, :]` and a flip takes x to `W - 1 - x`.
"""

from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Key, UInt8

from data_pipelines.coco17 import MIRROR, is_detected
from data_pipelines.parts import find_part, is_function_of
from star_jax.config.experiment import AugmentConfig, Config
from star_jax.models.interfaces import StyleSources
from star_jax.streams import stream

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# One rectangle in twenty does not fit a 288x144 frame; ten attempts all fail once in 1e13.
_ERASING_ATTEMPTS = 10

Frames = UInt8[Array, "B T H W 3"] | Float32[Array, "B T H W 3"]
Clips = tuple[Frames, Float32[Array, "B T 17 3"]]


class Augmentation(Protocol):
    """Changes the frames and the keypoints of B tracklets of one modality."""

    def __call__(
        self,
        key: Key[Array, ""],
        frames: Frames,
        keypoints: Float32[Array, "B T 17 3"],
        modality: str,
        config: AugmentConfig,
        /,
    ) -> Clips:
        """Returns frames and keypoints of the same shapes.

        Args:
          key: random key, a different one for each augmentation, modality and step.
          frames: uint8 or float32[B, T, H, W, 3] from 0 to 255 before the augmentation `normalize`;
            float32[B, T, H, W, 3], normalized, after it.
          keypoints: float32[B, T, 17, 3]: x, y in pixels and confidence, 0 for undetected joints.
          modality: "visible" or "infrared".
          config: a `config.augment`.
        """


def normalize(
    frames: UInt8[Array, "*batch 3"] | Float32[Array, "*batch 3"],
) -> Float32[Array, "*batch 3"]:
    """Normalizes frames of 0 to 255 by ImageNet's mean and standard deviation.

    Args:
      frames: uint8 or float32[..., 3], RGB.

    Returns:
      float32[..., 3].
    """
    channels = (1,) * (frames.ndim - 1) + (3,)
    mean = jnp.array(IMAGENET_MEAN, jnp.float32).reshape(channels)
    std = jnp.array(IMAGENET_STD, jnp.float32).reshape(channels)
    return (frames.astype(jnp.float32) / 255.0 - mean) / std


def random_crop_and_flip(
    key: Key[Array, ""],
    frames: Frames,
    keypoints: Float32[Array, "B T 17 3"],
    *,
    padding: int = 10,
    flip_probability: float = 0.5,
    per_frame: bool = False,
    move_keypoints: bool = True,
) -> Clips:
    """Pads the frames with black, crops them back to their size and mirrors some of them.

    The keypoints follow their pixels, and in a mirrored frame left and right joints swap. A joint
    that leaves the frame keeps its position and confidence, so that the skeleton's edges keep their
    lengths. A joint of confidence 0 was not detected and becomes exactly (0, 0, 0).

    Args:
      key: random key.
      frames: uint8 or float32[B, T, H, W, 3], before normalization (black is 0).
      keypoints: float32[B, T, 17, 3]: x, y in pixels and confidence.
      padding: pixels added on each side, the largest shift.
      flip_probability: share of mirrored tracklets (or frames).
      per_frame: draw for every frame instead of once per tracklet.
      move_keypoints: False returns the keypoints unchanged, as the authors' code does.

    Returns:
      Frames and keypoints of the same shapes and dtypes.
    """
    num_tracklets, num_frames, height, width, _ = frames.shape
    draws = (num_tracklets, num_frames if per_frame else 1)
    corner_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(corner_key, (*draws, 2), 0, 2 * padding + 1)  # y, x
    corners = jnp.broadcast_to(corners, (num_tracklets, num_frames, 2))
    flips = jax.random.bernoulli(flip_key, jnp.float32(flip_probability), draws)
    flips = jnp.broadcast_to(flips, (num_tracklets, num_frames))

    def crop(padded: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), (height, width, 3))

    padded = jnp.pad(frames, ((0, 0), (0, 0), (padding, padding), (padding, padding), (0, 0)))
    cropped = jax.vmap(jax.vmap(crop))(padded, corners)
    cropped = jnp.where(flips[..., None, None, None], cropped[..., ::-1, :], cropped)
    if not move_keypoints:
        return cropped, keypoints

    shift = (padding - corners).astype(keypoints.dtype)[:, :, None]  # [B, T, 1, 2]: y, x
    x = keypoints[..., 0] + shift[..., 1]
    y = keypoints[..., 1] + shift[..., 0]
    confidence = keypoints[..., 2]
    moved = jnp.stack([x, y, confidence], axis=-1)
    mirrored = mirror_keypoints(moved, width)
    moved = jnp.where(flips[..., None, None], mirrored, moved)
    return cropped, jnp.where(is_detected(moved)[..., None], moved, jnp.zeros_like(moved))


def mirror(
    frames: UInt8[Array, "*batch H W 3"] | Float32[Array, "*batch H W 3"],
    keypoints: Float32[Array, "*batch 17 3"],
) -> tuple[
    UInt8[Array, "*batch H W 3"] | Float32[Array, "*batch H W 3"], Float32[Array, "*batch 17 3"]
]:
    """Returns the mirror images of frames, left to right, and their keypoints.

    Args:
      frames: uint8 or float32[..., H, W, 3].
      keypoints: float32[..., 17, 3], see `mirror_keypoints`.

    Returns:
      Frames and keypoints of the same shapes and dtypes.
    """
    return frames[..., ::-1, :], mirror_keypoints(keypoints, frames.shape[-2])


def mirror_keypoints(
    keypoints: Float32[Array, "*batch 17 3"], width: int
) -> Float32[Array, "*batch 17 3"]:
    """Returns the keypoints of mirrored frames, in which left and right joints swap.

    Args:
      keypoints: float32[..., 17, 3]: x, y in pixels and confidence.
      width: of the frames, pixels.

    Returns:
      float32[..., 17, 3]; a joint of confidence 0 was not detected and becomes exactly (0, 0, 0).
    """
    x, y, confidence = jnp.moveaxis(keypoints, -1, 0)
    mirrored = jnp.stack([width - 1 - x, y, confidence], axis=-1)[..., jnp.array(MIRROR), :]
    return jnp.where(is_detected(mirrored)[..., None], mirrored, jnp.zeros_like(mirrored))


def random_erasing(
    key: Key[Array, ""],
    frames: Float32[Array, "B T H W 3"],
    *,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 3.33),
    fill: tuple[float, float, float] = (0.4914, 0.4822, 0.4465),
    per_frame: bool = False,
) -> Float32[Array, "B T H W 3"]:
    """Fills one rectangle in some tracklets with a constant per channel.

    Area and aspect ratio (height over width) are uniform in their ranges and drawn again while the
    rectangle does not fit the frame (Zhong et al., arXiv 1708.04896); if none of ten fits, nothing
    is erased.

    Args:
      key: random key.
      frames: float32[B, T, H, W, 3], normalized.
      probability: share of tracklets (or frames) in which a rectangle is erased.
      area: smallest and largest share of the frame.
      aspect: smallest and largest height over width.
      fill: the constants, in normalized units.
      per_frame: draw for every frame instead of once per tracklet.

    Returns:
      float32[B, T, H, W, 3].
    """
    num_tracklets, num_frames, height, width, _ = frames.shape
    draws = (num_tracklets, num_frames if per_frame else 1)
    erase_key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)

    attempts = (*draws, _ERASING_ATTEMPTS)
    areas = height * width * jax.random.uniform(area_key, attempts, minval=area[0], maxval=area[1])
    aspects = jax.random.uniform(aspect_key, attempts, minval=aspect[0], maxval=aspect[1])
    heights = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    chosen = jnp.argmax(fits, axis=-1, keepdims=True)
    erased_height = jnp.take_along_axis(heights, chosen, axis=-1)[..., 0]
    erased_width = jnp.take_along_axis(widths, chosen, axis=-1)[..., 0]
    erase = jax.random.bernoulli(erase_key, jnp.float32(probability), draws) & fits.any(axis=-1)

    top = jax.random.randint(top_key, draws, 0, height - erased_height + 1)
    left = jax.random.randint(left_key, draws, 0, width - erased_width + 1)
    in_rows = _in_span(height, top, erased_height)[..., :, None]
    in_columns = _in_span(width, left, erased_width)[..., None, :]
    inside = erase[..., None, None] & in_rows & in_columns
    constants = jnp.array(fill, frames.dtype).reshape(1, 1, 1, 1, 3)
    return jnp.where(inside[..., None], constants, frames)


def _in_span(size: int, start: jax.Array, length: jax.Array) -> jax.Array:
    """Returns which of `size` positions lie in the span: bool[..., size] for spans [...]."""
    offset = jnp.arange(size).reshape((1,) * start.ndim + (size,)) - start[..., None]
    return (offset >= 0) & (offset < length[..., None])


def style_gains(
    key: Key[Array, ""], frames: Float32[Array, "B T H W 3"], modality: str
) -> Float32[Array, "B T H W 3"]:
    """Changes the brightness of infrared frames and the colors of visible frames.

    An infrared frame is multiplied by a gain drawn from U[0.5, 1.5]. A visible frame is multiplied
    by one such gain per channel, and its channels are then permuted. Drawn for every frame.

    Args:
      key: random key.
      frames: float32[B, T, H, W, 3], normalized, all of one modality.
      modality: "visible" or "infrared".

    Returns:
      float32[B, T, H, W, 3].

    Raises:
      ValueError: the modality is neither.
    """
    shape = frames.shape[:2]
    gain_key, permutation_key = jax.random.split(key)
    if modality == "infrared":
        gains = jax.random.uniform(gain_key, shape, frames.dtype, minval=0.5, maxval=1.5)
        return frames * gains[..., None, None, None]
    if modality != "visible":
        raise ValueError(f"modality must be 'visible' or 'infrared', found {modality!r}")
    gains = jax.random.uniform(gain_key, (*shape, 3), frames.dtype, minval=0.5, maxval=1.5)
    channels = jnp.broadcast_to(jnp.arange(3), (*shape, 3))
    sources = jax.random.permutation(permutation_key, channels, axis=-1, independent=True)
    # mix[..., c, d] is the share of channel c in the new channel d. Products and sums fuse into one
    # pass over the frames; a gather along the channels would not.
    mix = gains[..., :, None] * jax.nn.one_hot(sources, 3, dtype=frames.dtype, axis=-2)
    mix = mix[:, :, None, None]
    red, green, blue = (frames[..., c : c + 1] * mix[..., c, :] for c in range(3))
    return red + green + blue


AUGMENTATIONS: Mapping[str, Augmentation] = {
    "crop_and_flip": lambda key, frames, keypoints, modality, config: random_crop_and_flip(
        key,
        frames,
        keypoints,
        padding=config.padding,
        flip_probability=config.flip_probability,
        per_frame=config.per_frame,
        move_keypoints=config.move_keypoints,
    ),
    "normalize": lambda key, frames, keypoints, modality, config: (normalize(frames), keypoints),
    "erasing": lambda key, frames, keypoints, modality, config: (
        random_erasing(
            key, frames, probability=config.erasing_probability, per_frame=config.per_frame
        ),
        keypoints,
    ),
    "style": lambda key, frames, keypoints, modality, config: (
        style_gains(key, frames, modality) if config.style else frames,
        keypoints,
    ),
}


def find_augmentation(name: str) -> Augmentation:
    """Returns the augmentation of a name or path; raises an InputError if there is none."""
    arguments = ("key", "frames", "keypoints", "modality", "config")
    return find_part(
        AUGMENTATIONS,
        name,
        "config.augment.parts",
        kind=f"a function of ({', '.join(arguments)})",
        include=lambda part: is_function_of(part, *arguments),
    )


def random_style_sources(key: Key[Array, ""], num_pairs: int, config: Config) -> StyleSources:
    """Draws the style sources of each frame: a permutation within each modality, and one across.

    Args:
      key: random key.
      num_pairs: B.
      config: an experiment.
    """
    visible, infrared = jnp.arange(num_pairs * config.data.clip_length * 2).reshape(-1, 2).T

    def drawn(name: str) -> list[jax.Array]:
        named = stream(key, name)
        return [
            jax.random.permutation(jax.random.fold_in(named, i), frames)
            for i, frames in enumerate((visible, infrared))
        ]

    same, other = drawn("same"), drawn("other")
    return StyleSources(
        same=jnp.stack(same, axis=1).ravel(),
        other=jnp.stack(other[::-1], axis=1).ravel(),
        stages=config.augment.style_stages,
    )
