"""The frames of a tracklet, read from the files that a dataset holds: JPEG, PNG or one video.

Frames are stored as JPEG. JPEG files are kept unchanged; frames of other files are encoded once, at
a quality with hardly any loss. The orientation in a picture's EXIF data is not applied, that of a
video is.
"""

import collections
import contextlib
import itertools
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Int32, UInt8

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io import files

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv")
MAX_PIXELS = 1 << 26  # per frame, since a few bytes can claim a size that fills the memory
_MAX_SCANNED = 1 << 30  # pixels times scans of a JPEG: each scan goes over all pixels, in seconds
_QUALITY = 95
_PNG = b"\x89PNG\r\n\x1a\n"
_RIFF = b"RIFF"
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # the elements of a Matroska file
# FFmpeg detects formats by content, and some formats name other files or addresses to read.
_VIDEO_START = re.compile(
    rb"....(ftyp|moov|mdat|wide|free|skip)|RIFF....AVI |\x1a\x45\xdf\xa3", re.DOTALL
)
_VIDEO_FRAME = re.compile(
    rf"(.+(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))}))#([0-9]+)", re.DOTALL | re.IGNORECASE
)
_LEAST_SHARE = 0.9  # of the frames that MP4 lists: those at its ends may be trimmed off

# The errors below name the file; what OpenCV and FFmpeg log about it would repeat them.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class Frames(NamedTuple):
    """The n frames of a tracklet.

    Attributes:
      jpegs: a JPEG file each.
      heights: int32[n], pixels.
      widths: int32[n].
    """

    jpegs: list[bytes]
    heights: Int32[np.ndarray, " n"]
    widths: Int32[np.ndarray, " n"]


def read_frames(root: str | os.PathLike[str], tracklet: schema.Tracklet) -> Frames:
    """Reads a tracklet's frames and checks each by decoding it.

    A frame is the path of a JPEG or PNG file, or `path/to/walk.mp4#12`: frame 12 of a video,
    counted from 0. Of PNG files, 16 bits are scaled to 8, palettes and greys become RGB, and
    transparency is dropped. A video is decoded once, from its start.

    Args:
      root: of the dataset.
      tracklet: whose frames; those of a video in ascending order.

    Raises:
      FileNotFoundError: a frame is missing.
      ValueError: a frame is broken, or its path leads out of the root. The message names it.
    """
    jpegs = []
    sizes = []
    for jpeg, pixels in _decoded(root, tracklet.frames):
        if jpeg is None:
            jpeg = encode(pixels)
        jpegs.append(jpeg)
        sizes.append(pixels.shape[:2])
    heights, widths = np.array(sizes, np.int32).T
    return Frames(jpegs, heights, widths)


def read_images(
    root: str | os.PathLike[str], tracklet: schema.Tracklet
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Decodes a tracklet's frames: uint8[H, W, 3] each, RGB; raises as `read_frames` does."""
    return list(iterate_images(root, tracklet))


def iterate_images(
    root: str | os.PathLike[str], tracklet: schema.Tracklet
) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
    """Decodes a tracklet's frames one after the other; see `read_images`."""
    return (pixels for _, pixels in _decoded(root, tracklet.frames))


def encode(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Returns a JPEG file of uint8[H, W, 3], RGB, with hardly any loss."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), _QUALITY, "RGB", "444")


def frame_errors(root: str | os.PathLike[str], tracklet: schema.Tracklet) -> list[str]:
    """Returns one message for each frame, or video, that cannot be read; none if all can."""
    errors = []
    for video, names in _by_video(tracklet.frames):
        for part in [names] if video else [[name] for name in names]:
            try:
                collections.deque(_decoded(root, part), maxlen=0)
            except (ValueError, OSError) as error:
                errors.append(str(error))
    return errors


def count_frames(root: str | os.PathLike[str], video: str) -> int:
    """Counts the frames of a video by decoding it, since the number in its header may be wrong.

    Args:
      root: of the dataset.
      video: its path below the root.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a video, has no frames or ends early, or its path leads out of the root.
    """
    with _open_video(root, video) as (capture, lists_frames):
        count = 0
        while capture.grab():
            count += 1
        _require_end(capture, video, count, lists_frames)
    return count


@contextlib.contextmanager
def open_video(
    root: str | os.PathLike[str], video: str, every: int = 1
) -> Iterator[tuple[int, Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]]]:
    """Opens a video of any length, of which one frame at a time is in memory.

    Args:
      root: a folder.
      video: its path below the folder.
      every: N takes every N-th frame, the first one included; the others are not converted.

    Yields:
      The number of all frames by the video's header, which may be wrong, and the frames: number,
      counted from 0, and uint8[H, W, 3], RGB. They raise a ValueError if the video ends early.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a video, or its path leads out of the root.
    """
    with _open_video(root, video) as (capture, lists_frames):

        def frames() -> Iterator[tuple[int, np.ndarray]]:
            count = 0
            while capture.grab():
                if count % every == 0:
                    yield count, _retrieve(capture, video, count)
                count += 1
            _require_end(capture, video, count, lists_frames)

        yield max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0), frames()


def files_of(frames: Iterable[str]) -> list[str]:
    """Returns the paths of the files, pictures or videos, that hold frames; each of them once."""
    return list(dict.fromkeys(map(_file_of, frames)))


def _file_of(frame: str) -> str:
    """Returns the path of the file that holds a frame: a picture or a video."""
    match = _VIDEO_FRAME.fullmatch(frame) if "#" in frame else None
    return match[1] if match else frame


def _decoded(
    root: str | os.PathLike[str], names: Sequence[str]
) -> Iterator[tuple[bytes | None, np.ndarray]]:
    """Yields for each frame its JPEG file, if it is one, and its pixels, uint8[H, W, 3], RGB."""
    for video, own in _by_video(names):
        if video:
            for pixels in _read_video(root, video, [int(name.rpartition("#")[2]) for name in own]):
                yield None, pixels
        else:
            for name in own:
                yield _read_still(root, name)


def _by_video(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Groups the names of frames by their video; the video of pictures is ""."""

    def video_of(name: str) -> str:
        file = _file_of(name)
        return "" if file == name else file

    for video, own in itertools.groupby(names, video_of):
        yield video, list(own)


def _read_still(root: str | os.PathLike[str], name: str) -> tuple[bytes | None, np.ndarray]:
    content = files.read_inside(root, name)
    if not content:
        raise InputError(f"{name}: the file is empty; replace it with a good copy")
    if content.startswith(_PNG):
        return None, _decode_png(content, name)
    return content, _decode_jpeg(content, name)


def _decode_jpeg(content: bytes, name: str) -> np.ndarray:
    with _intact_jpeg(name):
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    _check_size(height, width, name)
    scans = content.count(b"\xff\xda")  # a few too many if the metadata holds a picture
    if scans * height * width > _MAX_SCANNED:
        raise InputError(
            f"{name}: {scans} scans of {width} x {height} pixels take too long to decode; save the "
            "picture again as an ordinary JPEG"
        )
    if colours in ("CMYK", "YCCK"):
        raise InputError(f"{name}: its colours are {colours}, for printing; convert it to RGB")
    with _intact_jpeg(name):
        return simplejpeg.decode_jpeg(content)


@contextlib.contextmanager
def _intact_jpeg(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(
            f"{name}: not an intact JPEG ({error}); replace it with a good copy"
        ) from error


def _decode_png(content: bytes, name: str) -> np.ndarray:
    if len(content) >= 24:
        width, height = struct.unpack(">II", content[16:24])
        _check_size(height, width, name)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise InputError(f"{name}: not an intact PNG; replace it with a good copy")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _check_size(height: int, width: int, name: str) -> None:
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{name}: {width} x {height} pixels are more than a frame can have ({MAX_PIXELS}); "
            "a frame is expected to be a crop of one person"
        )


def _read_video(
    root: str | os.PathLike[str], video: str, numbers: Sequence[int]
) -> Iterator[np.ndarray]:
    """Yields the frames with these ascending numbers, uint8[H, W, 3], RGB."""
    with _open_video(root, video) as (capture, _):
        grabbed = 0
        for number in numbers:
            if number < grabbed:
                raise InputError(f"{video}: frame {number} is requested after frame {grabbed - 1}")
            for _ in range(number + 1 - grabbed):
                if not capture.grab():
                    raise InputError(
                        f"{video}: the video ends after {grabbed} frames, before frame {number}; "
                        "was it changed? Prepare the dataset again"
                    )
                grabbed += 1
            yield _retrieve(capture, video, number)


def _retrieve(capture: cv2.VideoCapture, video: str, number: int) -> np.ndarray:
    """Returns the frame that was grabbed last, uint8[H, W, 3], RGB."""
    decoded, pixels = capture.retrieve()
    if not decoded:
        raise InputError(f"{video}: frame {number} cannot be decoded; replace the video")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _require_end(capture: cv2.VideoCapture, video: str, count: int, lists_frames: bool) -> None:
    """Raises an error if a video has no frames, or fewer than its header lists."""
    announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if not count:
        raise InputError(f"{video}: no frame of the video can be decoded; replace it")
    if lists_frames and count < _LEAST_SHARE * announced:
        raise InputError(
            f"{video}: the video ends early, {count} of {announced} frames can be decoded; replace "
            "it with a good copy or, if it was trimmed, encode it again "
            f"(ffmpeg -i {video} new.mp4)"
        )


@contextlib.contextmanager
def _open_video(
    root: str | os.PathLike[str], video: str
) -> Iterator[tuple[cv2.VideoCapture, bool]]:
    """Opens a video that is not truncated; yields it and whether its format lists the frames.

    MP4 does. The other formats give a duration, and a rate that frames need not keep.
    """
    path = files.resolve_inside(root, video)
    with open(path, "rb") as file:
        start = file.read(4096)
    if not _VIDEO_START.match(start):
        raise InputError(
            f"{video}: not a video in MP4, QuickTime, AVI or Matroska format; replace it with a "
            "good copy"
        )
    size, announced = path.stat().st_size, _announced_size(start)
    if size < announced:
        raise InputError(
            f"{video}: the video ends early, at {size} of {announced} bytes; replace it with a "
            "good copy"
        )
    # Tracklets are read in parallel, so one thread per video is enough.
    capture = cv2.VideoCapture(os.fspath(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        if not capture.isOpened():
            raise InputError(
                f"{video}: not an intact video, it cannot be opened; replace it with a good copy"
            )
        height, width = cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH
        _check_size(int(capture.get(height)), int(capture.get(width)), video)
        yield capture, not start.startswith((_RIFF, _EBML))
    except cv2.error as error:
        raise InputError(f"{video}: the video cannot be decoded ({error.err})") from error
    finally:
        capture.release()


def _announced_size(start: bytes) -> int:
    """Returns the bytes of an AVI or Matroska file by its header; 0 if it does not say."""
    if start.startswith(_RIFF):
        size = int.from_bytes(start[4:8], "little")
        return 0 if size == 0xFFFFFFFF else 8 + size  # all ones: unknown
    end = 0
    for element in (_EBML, _SEGMENT):
        if not start.startswith(element, end) or len(start) < end + 12:
            return 0
        length = 9 - start[end + 4].bit_length()  # bytes of the size, by its leading zeros
        ones = (1 << 7 * length) - 1
        size = int.from_bytes(start[end + 4 : end + 4 + length], "big") & ones
        if size == ones:
            return 0
        end += 4 + length + size
    return end
