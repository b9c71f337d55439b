"""Writes small videos and pictures for the tests of footage."""

import pathlib
from collections.abc import Sequence

import av
import cv2
import numpy as np

COLORS = ((220, 40, 30), (30, 200, 60), (40, 60, 210))  # RGB, of successive frames
HEIGHT, WIDTH = 64, 32
TITLE = "title of a film"  # of those that `encode_video` writes
CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".avi": "MJPG", ".mkv": "MJPG"}


def color_of(number: int) -> np.ndarray:
    return np.array(COLORS[number % 3])


def write_video(path: pathlib.Path, num_frames: int, first: int = 0) -> pathlib.Path:
    """Writes frames of one color each, from that of `first` on; a bright stripe marks the top."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # FFmpeg's .m4v is a raw stream; elsewhere it is MP4.
    written = path.with_suffix(".mp4") if path.suffix == ".m4v" else path
    writer = cv2.VideoWriter(
        str(written),
        cv2.CAP_FFMPEG,
        cv2.VideoWriter.fourcc(*CODECS[path.suffix.lower()]),
        10,
        (WIDTH, HEIGHT),
    )
    assert writer.isOpened()
    for number in range(num_frames):
        writer.write(np.ascontiguousarray(frame_of(first + number)[..., ::-1]))
    writer.release()
    written.rename(path)
    return path


def encode_video(
    path: pathlib.Path, images: Sequence[np.ndarray], codec: str, pix_fmt="yuv420p", **options: str
) -> pathlib.Path:
    """Writes frames, uint8[H, W, 3] or those of another format of PyAV, with any codec of FFmpeg.

    Args:
      path: whose ending names the container.
      images: the frames.
      codec: such as "libx264".
      pix_fmt: of the video, and of images that are not RGB.
      **options: of the codec.
    """
    with av.open(path, "w") as container:
        container.metadata["title"] = TITLE
        stream = container.add_stream(codec, 10, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, "rgb24" if image.ndim == 3 else pix_fmt)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frame_of(number: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Returns a frame of one color, with a bright stripe that marks the top."""
    frame = np.full((*size, 3), color_of(number), np.uint8)
    frame[: size[0] // 4] = 255
    return frame


def write_image(path: pathlib.Path, pixels: np.ndarray | None = None) -> pathlib.Path:
    """Writes RGB, gray or 16-bit pixels in the format of the path's extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.full((HEIGHT, WIDTH, 3), COLORS[0], np.uint8)
    if pixels.ndim == 3:
        pixels = np.concatenate([pixels[..., 2::-1], pixels[..., 3:]], axis=-1)
    assert cv2.imwrite(str(path), pixels)
    return path
