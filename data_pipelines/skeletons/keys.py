"""How files of skeletons name frames, in whatever format: by the end of a frame's path."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from data_pipelines.io.frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES

MIN_PARTS = 4  # <identity>/<modality>/<camera>/<frame>
# A name may have other dots, so only known extensions are cut off.
_PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".bmp", ".tif", ".tiff", ".webp")
_VIDEO_FRAME = re.compile(
    rf"(.*[^/](?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))}))#([0-9]+)", re.DOTALL | re.IGNORECASE
)


def key_of(frame: str) -> tuple[str, ...]:
    """Returns the parts by which files of skeletons name a frame.

    They are those of its path, without the extension of a picture or video: `1/IR/CQ1/8535.jpg` is
    known as `("1", "IR", "CQ1", "8535")`, and `alice/visible/1/walk.mp4#12`, a frame of a video, as
    `("alice", "visible", "1", "walk", "12")`.
    """
    container, name = split(frame)
    return (*folders_of(container), without_ending(name))


def without_ending(name: str) -> str:
    """Returns a frame's name without the extension of a picture."""
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in _PICTURE_SUFFIXES else name


def split(frame: str) -> tuple[str, str]:
    """Returns the folder, or the video with its extension, of a frame; and the frame's name.

    A folder ends with a slash, which distinguishes it from a video.
    """
    if match := _VIDEO_FRAME.fullmatch(frame):
        return match[1], match[2]
    folder, slash, name = frame.rpartition("/")
    return folder + slash, name


def folders_of(container: str) -> tuple[str, ...]:
    """Returns the parts of the path of a folder or a video, the latter without its extension."""
    path = container if container.endswith("/") else os.path.splitext(container)[0]
    return tuple(part for part in path.split("/") if part not in ("", "."))


def spellings(name: str) -> Iterable[str]:
    """Returns a name as it is and in NFC and NFD, the form that macOS stores."""
    if name.isascii():
        return (name,)
    return dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))])


def ends(folders: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yields the ends of a frame's folders by which it may be known, the longest first."""
    for start in range(max(1, len(folders) - MIN_PARTS + 2)):
        yield tuple(folders[start:])
