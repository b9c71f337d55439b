"""Frames of tracklets with their skeletons drawn on, as strips and as data of a web page."""

import base64
import functools
from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg
from jaxtyping import Float32, UInt8

from data_pipelines.errors import InputError, UserError
from data_pipelines.io import remote
from data_pipelines.io.terminal import printable
from data_pipelines.records.dataset import Split, open_dataset
from data_pipelines.records.reading import decode_clip
from data_pipelines.sampling import clips_to_embed
from data_pipelines.skeletons.drawing import resized_with_skeleton
from data_pipelines.skeletons.sheets import evenly_spaced
from star_jax.config import Config
from star_jax.embedding.embeddings import Embeddings
from star_jax.network import clip_spec

FRAME_HEIGHT = 160  # of drawn frames, pixels
_GAP = 4
_WIDEST = 4  # times the height: the width of frames that are drawn without being squeezed

# From the position of a tracklet to its drawn frames, uint8[T, h, w, 3].
DrawnFrames = Callable[[int], UInt8[np.ndarray, "T h w 3"]]
# From the position of a tracklet, a number of frames and their height in pixels to that many drawn
# frames, spread evenly over the tracklet, uint8[h, w, 3] each; widths may differ.
SpreadFrames = Callable[[int, int, int], list[UInt8[np.ndarray, "h w 3"]]]


def open_frames(config: Config, split: Split) -> DrawnFrames:
    """Returns a function from a tracklet's position to the frames that the network sees, drawn.

    Args:
      config: the experiment; `data` is read.
      split: of a packed dataset.
    """
    records, spec = split.records, clip_spec(config)

    @functools.lru_cache(maxsize=256)
    def drawn(position: int) -> np.ndarray:
        record = records[position]
        (chosen,) = clips_to_embed(
            len(record["frames"]), spec.length, mode="first", sampling=spec.sampling
        )
        frames = np.zeros((spec.length, *spec.frame_size, 3), np.uint8)
        return with_skeletons(frames, decode_clip(record, chosen, frames))

    return drawn


def open_spread_frames(
    embeddings: Embeddings, warn: Callable[[str], None], *, follow: bool = False
) -> SpreadFrames | None:
    """Returns a function from a tracklet's position to some of its frames with their skeletons.

    If the packed dataset is missing or has changed, `warn` is called with the reason, and None is
    returned.

    Args:
      embeddings: of a packed split, whose `dataset_dir` is read.
      warn: takes a message.
      follow: whether a dataset at a URL is accessed. Embeddings may come from an untrusted
        source, so only URLs that the user has given are accessed.
    """
    dataset_dir = embeddings.dataset_dir
    try:
        if remote.is_remote(dataset_dir) and not follow:
            raise InputError(
                f"{dataset_dir}: a URL in embeddings is not followed; embed a local copy "
                "of the dataset"
            )
        dataset, made = open_dataset(dataset_dir), embeddings.provenance
        if dataset.fingerprint != made.dataset:
            raise InputError(f"{dataset_dir}: not the dataset that was embedded")
        records = dataset.split(made.split, made.held_out).records
        if len(records) != len(embeddings.vectors):
            raise InputError(f"{dataset_dir}: not the split that was embedded")
    except FileNotFoundError:
        warn(
            f"no pictures: {printable(dataset_dir)} is not a packed dataset; to see pictures, pack "
            "the footage with launch/prepare.py and embed it with launch/embed.py"
        )
        return None
    except (OSError, UserError) as error:
        warn(f"no pictures: {printable(str(error))}")
        return None

    def drawn(position: int, count: int, height: int) -> list[np.ndarray]:
        record = records[position]
        pictures = []
        for number in evenly_spaced(len(record["frames"]), count):
            size = record["height"][number], record["width"][number]
            frame = np.zeros((1, *size, 3), np.uint8)
            keypoints = decode_clip(record, np.array([number]), frame)
            pictures.append(with_skeletons(frame, keypoints, height)[0])
        return pictures

    return drawn


def with_skeletons(
    frames: UInt8[np.ndarray, "T H W 3"],
    keypoints: Float32[np.ndarray, "T 17 3"],
    height: int = FRAME_HEIGHT,
) -> UInt8[np.ndarray, "T h w 3"]:
    """Returns the frames with their skeletons drawn on, resized to a height in pixels."""
    size = frames.shape[1:3]
    width = min(max(1, round(size[1] * height / size[0])), _WIDEST * height)
    pairs = zip(frames, keypoints, strict=True)
    return np.stack([resized_with_skeleton(*pair, (height, width)) for pair in pairs])


def sheet(frames: UInt8[np.ndarray, "T h w 3"], count: int = 4) -> UInt8[np.ndarray, "H W 3"]:
    """Returns some of the frames, spread evenly, in two columns in order of time."""
    chosen = evenly_spaced(len(frames), count)
    columns = min(2, len(chosen))
    rows = []
    for start in range(0, len(chosen), columns):
        row = [*frames[chosen[start : start + columns]]]
        row += [np.zeros_like(row[0])] * (columns - len(row))
        rows.append(joined(row, axis=1))
    return joined(rows, axis=0)


def joined(pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], axis: int) -> UInt8[np.ndarray, "H W 3"]:
    """Returns pictures one below the other (axis 0) or side by side (1), with black gaps.

    Args:
      pictures: of one width, or of one height.
      axis: along which they are joined.
    """
    shape = list(pictures[0].shape)
    shape[axis] = _GAP
    gap = np.zeros(shape, np.uint8)
    parts = [pictures[0]]
    for picture in pictures[1:]:
        parts += [gap, picture]
    return np.concatenate(parts, axis)


def data_address(picture: UInt8[np.ndarray, "H W 3"]) -> str:
    """Returns a picture as a `data:` URL, which a page embeds."""
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), 85, "RGB")
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
