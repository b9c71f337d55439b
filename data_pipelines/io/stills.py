"""Decodes still pictures, JPEG and PNG, and rotates them upright according to their EXIF data."""

import contextlib
import re
import struct
from collections.abc import Iterator
from typing import NoReturn

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8, UInt16

from data_pipelines.errors import InputError
from data_pipelines.io.files import refuse_stand_in
from data_pipelines.pixels import require_size

_MAX_SCANNED = 1 << 30  # pixels times scans of a JPEG: each scan goes over all pixels, in seconds
_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
_GRAY_PNGS = (0, 4)  # types of color: gray, and gray with transparency
_OTHERS = {  # pictures of other formats: how their files begin
    "WebP": rb"RIFF....WEBP",
    "BMP": rb"BM",
    "GIF": rb"GIF8",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF or HEIC": rb"....ftyp(?:avif|avis|heic|heix|heim|hevc|mif1|msf1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "Netpbm": rb"P[1-7]\s",
}


def decode(
    content: bytes, name: str
) -> tuple[bytes | None, UInt8[np.ndarray, "H W 3"] | UInt16[np.ndarray, "H W"]]:
    """Decodes the file of a picture.

    Args:
      content: of a JPEG or PNG file.
      name: of the file, for errors.

    Returns:
      The file, if it is a JPEG that is already upright, and the upright pixels: uint8[H, W, 3],
      RGB, or uint16[H, W] of a gray PNG of 16 bits, which holds sensor counts (see
      `counts_to_rgb`). PNG files of other kinds become RGB of 8 bits, without transparency.

    Raises:
      InputError: the file is broken or of another format, or the picture is too large.
    """
    if content.startswith(_PNG):
        return None, _decode_png(content, name)
    if not content.startswith(_JPEG):
        _refuse(content, name)
    pixels = decode_jpeg(content, name)
    orientation = _orientation(content)
    if orientation == 1:
        return content, pixels
    return None, _upright(pixels, orientation)


def counts_to_rgb(
    counts: UInt16[np.ndarray, "H W"], least: int, largest: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns gray pixels, uint8[H, W, 3]: 0 at the smallest count, 255 at the largest."""
    shares = (counts.astype(np.float32) - least) / max(largest - least, 1)
    return cv2.cvtColor(np.rint(255 * shares).astype(np.uint8), cv2.COLOR_GRAY2RGB)


def _refuse(content: bytes, name: str) -> NoReturn:
    """Raises an error that says what a file is, which is neither JPEG nor PNG, and what to do."""
    refuse_stand_in(name, content)
    for kind, beginning in _OTHERS.items():
        if re.match(beginning, content, re.DOTALL):
            raise InputError(
                f"{name}: is a picture of the format {kind}, not JPEG or PNG; convert it, for "
                f"instance with ffmpeg -i {name} new.png"
            )
    what = f"begins with {content[:16]!r}" if content.strip() else "holds only whitespace"
    raise InputError(
        f"{name}: is neither JPEG nor PNG, it {what}; replace it with the picture itself"
    )


def decode_jpeg(
    content: bytes,
    name: str,
    *,
    size: tuple[int, int] | None = None,
    buffer: UInt8[np.ndarray, "H W 3"] | None = None,
    remedy: str = "replace it with a good copy",
) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes a JPEG file as stored, RGB, if it takes little memory and time.

    Args:
      content: of the file.
      name: of the file, for errors.
      size: height and width that it must have; None allows any.
      buffer: for the pixels of such a picture, uint8[H, W, 3]; None makes one.
      remedy: what to do if it is broken.

    Raises:
      InputError: it is broken, of another size, too large, or takes too long.
    """
    with _intact_jpeg(name, remedy):
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
    if size is not None and size != (height, width):
        expected = f"{size[1]} x {size[0]}"
        raise InputError(f"{name}: has {width} x {height} pixels, not {expected}; {remedy}")
    require_size(height, width, name)
    scans = content.count(b"\xff\xda")  # a few too many if the metadata holds a picture
    if scans * height * width > _MAX_SCANNED:
        raise InputError(
            f"{name}: {scans} scans of {width} x {height} pixels take too long to decode; save the "
            "picture again as an ordinary JPEG"
        )
    if colors in ("CMYK", "YCCK"):
        raise InputError(f"{name}: its colors are {colors}, for printing; convert it to RGB")
    with _intact_jpeg(name, remedy):
        pixels: np.ndarray = simplejpeg.decode_jpeg(content, buffer=buffer)
    return pixels


@contextlib.contextmanager
def _intact_jpeg(name: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(f"{name}: not an intact JPEG ({error}); {remedy}") from error


def _orientation(jpeg: bytes) -> int:
    """Returns the orientation in the EXIF data of a JPEG, from 1 to 8; 1 is upright."""
    place = 2
    while jpeg.startswith(b"\xff", place):
        marker = jpeg[place + 1 : place + 2]
        if marker in (b"", b"\xda"):  # the pixels begin
            break
        if marker == b"\xff":  # it fills
            place += 1
            continue
        size = int.from_bytes(jpeg[place + 2 : place + 4], "big")
        segment = jpeg[place + 4 : place + 2 + size]
        if marker == b"\xe1" and segment.startswith(b"Exif\0\0"):
            return _tiff_orientation(segment[6:])
        place += 2 + size
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    """Returns the orientation in the first directory of TIFF, as which EXIF data is stored."""
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            place = directory + 2 + 12 * entry
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, place)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # it ends early
        pass
    return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns a picture as viewers show it, given the orientation in which it is stored."""
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _decode_png(content: bytes, name: str) -> np.ndarray:
    pixels = None
    if len(content) >= 29:  # with the whole header
        width, height, depth, kind = struct.unpack(">IIBB", content[16:26])
        require_size(height, width, name)
        is_gray = depth == 16 and kind in _GRAY_PNGS
        flags = cv2.IMREAD_ANYDEPTH if is_gray else cv2.IMREAD_COLOR
        with contextlib.suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if pixels is None:
        raise InputError(f"{name}: not an intact PNG; replace it with a good copy")
    return pixels if is_gray else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
