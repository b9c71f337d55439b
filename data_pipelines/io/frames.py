"""The frames of a tracklet, read from the files that a dataset holds: JPEG, PNG or one video.

Frames are stored as JPEG, upright. JPEG files that are already upright are kept unchanged; frames
of other files are encoded once, at a quality with almost no loss.
"""

import collections
import contextlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np
import simplejpeg
from av.video.reformatter import VideoReformatter
from jaxtyping import Int32, UInt8

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io import files, stills
from data_pipelines.pixels import MAX_PIXELS, require_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv")
_QUALITY = 95
_RIFF = b"RIFF"
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # the elements of a Matroska file
# How files of FFmpeg's formats begin. Left to itself, FFmpeg detects formats by content, and some
# of them name other files or URLs to read.
_FORMATS = {
    "mov": re.compile(rb"....(ftyp|moov|mdat|wide|free|skip)", re.DOTALL),
    "avi": re.compile(rb"RIFF....AVI ", re.DOTALL),
    "matroska": re.compile(_EBML),
}
_VIDEO_FRAME = re.compile(
    rf"(.+(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))}))#([0-9]+)", re.DOTALL | re.IGNORECASE
)
_LEAST_SHARE = 0.9  # of the frames that MP4 lists: those at its ends may be trimmed off
_DECODING = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}  # errors are not concealed


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
    counted from 0. Pictures and videos are rotated upright according to their metadata. Palettes
    and grays become RGB, and transparency is dropped. A gray PNG of 16 bits holds sensor counts:
    the smallest and the largest count of the tracklet become 0 and 255. Colors of 16 bits are
    divided by 256. A video is decoded once, from its start.

    Args:
      root: of the dataset.
      tracklet: whose frames; those of a video in ascending order.

    Raises:
      FileNotFoundError: a frame is missing.
      ValueError: a frame is broken, or its path leads out of the root. The message names it.
    """
    jpegs = []
    sizes = []
    for jpeg, pixels in _decoded(root, tracklet):
        if jpeg is None:
            jpeg = encode(pixels)
        jpegs.append(jpeg)
        sizes.append(pixels.shape[:2])
    heights, widths = np.array(sizes, np.int32).T
    return Frames(jpegs, heights, widths)


def read_images(
    root: str | os.PathLike[str], tracklet: schema.Tracklet, chosen: Sequence[str] | None = None
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Decodes frames of a tracklet, uint8[H, W, 3] each, RGB; see `iterate_images`."""
    return list(iterate_images(root, tracklet, chosen))


def iterate_images(
    root: str | os.PathLike[str], tracklet: schema.Tracklet, chosen: Sequence[str] | None = None
) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
    """Decodes frames of a tracklet one after the other, as `read_frames` does.

    Args:
      root: of the dataset.
      tracklet: whose frames.
      chosen: which of them, in their order; None takes all.
    """
    return (pixels for _, pixels in _decoded(root, tracklet, chosen))


def encode(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Returns a JPEG file of uint8[H, W, 3], RGB, with almost no loss."""
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), _QUALITY, "RGB", "444")
    return content


def frame_errors(root: str | os.PathLike[str], tracklet: schema.Tracklet) -> list[str]:
    """Returns one message for each frame, or video, that cannot be read; none if all can."""
    errors = []
    for video, names in _by_video(tracklet.frames):
        for part in [names] if video else [[name] for name in names]:
            try:
                collections.deque(_stored(root, part), maxlen=0)
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
      ValueError: it is not a video, has no frames, is damaged or ends early, or its path leads out
        of the root.
    """
    with _open_video(root, video) as opened:
        return sum(1 for _ in opened.frames())


@contextlib.contextmanager
def open_video(
    root: str | os.PathLike[str], video: str, every: int = 1
) -> Iterator[tuple[int, Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]]]:
    """Opens a video of any length, and keeps one frame at a time in memory.

    Args:
      root: a folder.
      video: its path below the folder.
      every: N takes every N-th frame, the first one included; the others are not converted.

    Yields:
      The number of all frames by the video's header, which may be wrong, and the frames: number,
      counted from 0, and uint8[H, W, 3], RGB. They raise a ValueError where the video is damaged,
      and at its end if it ends early.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a video, or its path leads out of the root.
    """
    with _open_video(root, video) as opened:
        taken = itertools.islice(enumerate(opened.frames()), 0, None, every)
        yield opened.announced, ((number, opened.pixels(frame)) for number, frame in taken)


def files_of(frames: Iterable[str]) -> list[str]:
    """Returns the paths of the files, pictures or videos, that hold frames; each of them once."""
    return list(dict.fromkeys(map(_file_of, frames)))


def _file_of(frame: str) -> str:
    """Returns the path of the file that holds a frame: a picture or a video."""
    match = _VIDEO_FRAME.fullmatch(frame) if "#" in frame else None
    return match[1] if match else frame


def _decoded(
    root: str | os.PathLike[str], tracklet: schema.Tracklet, chosen: Sequence[str] | None = None
) -> Iterator[tuple[bytes | None, np.ndarray]]:
    """Yields for each frame its JPEG file, if it is kept, and its pixels, uint8[H, W, 3], RGB."""
    limits: tuple[int, int] | None = None  # of the counts in all frames of the tracklet
    for jpeg, pixels in _stored(root, tracklet.frames if chosen is None else chosen):
        if pixels.dtype == np.uint16:
            limits = limits or _limits(root, tracklet.frames)
            pixels = stills.counts_to_rgb(pixels, *limits)
        yield jpeg, pixels


def _limits(root: str | os.PathLike[str], names: Sequence[str]) -> tuple[int, int]:
    """Returns the least and the largest count of 16-bit frames; one of them at a time is read."""
    decoded = (pixels for _, pixels in _stored(root, names))
    limits = [(pixels.min(), pixels.max()) for pixels in decoded if pixels.dtype == np.uint16]
    return int(min(least for least, _ in limits)), int(max(largest for _, largest in limits))


def _stored(
    root: str | os.PathLike[str], names: Sequence[str]
) -> Iterator[tuple[bytes | None, np.ndarray]]:
    """Yields frames as `stills.decode` returns them."""
    for video, own in _by_video(names):
        if video:
            for pixels in _read_video(root, video, [int(name.rpartition("#")[2]) for name in own]):
                yield None, pixels
        else:
            for name in own:
                yield stills.decode(files.read_inside(root, name), name)


def _by_video(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Groups the names of frames by their video; the video of pictures is ""."""

    def video_of(name: str) -> str:
        file = _file_of(name)
        return "" if file == name else file

    for video, own in itertools.groupby(names, video_of):
        yield video, list(own)


def _read_video(
    root: str | os.PathLike[str], video: str, numbers: Sequence[int]
) -> Iterator[np.ndarray]:
    """Yields the frames with these ascending numbers, uint8[H, W, 3], RGB."""
    with _open_video(root, video) as opened:
        frames = opened.frames()
        passed = 0
        for number in numbers:
            if number < passed:
                raise InputError(f"{video}: frame {number} is requested after frame {passed - 1}")
            frame = next(itertools.islice(frames, number - passed, None), None)
            if frame is None:
                raise InputError(
                    f"{video}: the video ends before frame {number}; was it changed? Prepare the "
                    "dataset again"
                )
            passed = number + 1
            yield opened.pixels(frame)


class _Video:
    """An open video.

    Attributes:
      announced: the number of its frames by its header, which may be wrong.
    """

    def __init__(self, container: av.container.InputContainer, name: str, remedy: str):
        self._container, self._name, self._remedy = container, name, remedy
        streams = container.streams.video
        if not streams or streams[0].codec_context is None:
            raise InputError(f"{name}: holds no video of a codec that can be decoded; {remedy}")
        self._stream = streams[0]
        codec = self._stream.codec_context
        require_size(codec.height, codec.width, name)
        codec.thread_count = 1  # tracklets are read in parallel
        codec.options = _DECODING
        seconds, rate = (container.duration or 0) / av.time_base, self._stream.average_rate
        self.announced = self._stream.frames or round(seconds * (rate or 0))
        self._listed = self._count_listed()
        self._reformatter = VideoReformatter()

    def _count_listed(self) -> int:
        """Returns how many packets the container lists, at least; Matroska lists none."""
        listed, index = self._stream.frames, self._stream.index_entries
        if self._container.format.name == "avi":
            # Chunks that are empty repeat a frame. The index gives their number, except of those
            # at the end, and they are no packets.
            repeats = index[-1].timestamp + 1 - len(index) if len(index) else 0
            return max(listed - 2 * repeats, len(index))
        return max(math.ceil(_LEAST_SHARE * listed), len(index))

    def frames(self) -> Iterator[av.VideoFrame]:
        """Yields all frames; raises an InputError if some are damaged or missing."""
        packets = hidden = count = 0
        per_frame = 1
        for packet in self._container.demux(self._stream):
            packets += packet.size > 0
            hidden += packet.size > 0 and packet.is_discard
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise InputError(f"{self._name}: frame {count} is damaged; {self._remedy}")
                if frame.interlaced_frame:
                    per_frame = 2  # at most: each field may come in a packet of its own
                count += 1
                yield frame
        if not count:
            raise InputError(f"{self._name}: no frame can be decoded; {self._remedy}")
        missing = max(self._listed - packets, packets - hidden - per_frame * count)
        if missing > 0:
            raise InputError(
                f"{self._name}: the video is damaged or ends early, {count} frames can be decoded "
                f"and at least {missing} are missing; {self._remedy}"
            )

    def pixels(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
        """Returns a frame, upright, RGB."""
        if frame.format.name.startswith("gray") and frame.format.components[0].bits > 8:
            raise InputError(
                f"{self._name}: its pixels are counts of {frame.format.components[0].bits} bits, "
                "whose range is not known; write them as pictures "
                f"(ffmpeg -i {self._name} %d.png), or scale them to 8 bits"
            )
        picture = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        turns = round(frame.rotation / 90)
        return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


@contextlib.contextmanager
def _open_video(root: str | os.PathLike[str], video: str) -> Iterator[_Video]:
    """Opens a video that is not truncated."""
    with open(files.resolve_inside(root, video), "rb") as file:
        start = file.read(4096)
        container_format = next((name for name in _FORMATS if _FORMATS[name].match(start)), None)
        if container_format is None:
            files.refuse_stand_in(video, start)
            raise InputError(
                f"{video}: not a video in MP4, QuickTime, AVI or Matroska format; replace it with "
                "a good copy"
            )
        size, announced = file.seek(0, os.SEEK_END), _announced_size(start)
        if size < announced:
            raise InputError(
                f"{video}: the video ends early, at {size} of {announced} bytes; replace it with a "
                "good copy"
            )
        file.seek(0)
        remedy = (
            "replace it with a good copy, or encode what can be decoded again "
            f"(ffmpeg -i {video} new.mp4)"
        )
        try:
            with av.open(
                file, "r", container_format, options=_DECODING, metadata_errors="replace"
            ) as container:
                yield _Video(container, video, remedy)
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):  # so FFmpeg also calls sizes that cannot be
                remedy = f"if memory is free, {remedy}"
            raise InputError(f"{video}: cannot be decoded ({error.strerror}); {remedy}") from error


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
