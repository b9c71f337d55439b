"""What identifies footage: the bytes of its files, which are read only if they may have changed."""

import os
import pathlib

import pytest

from data_pipelines.errors import InputError
from data_pipelines.records import contents

FRAMES = ("a/1.jpg", "a/2.jpg", "b.mp4#0", "b.mp4#7")


@pytest.fixture
def root(tmp_path):
    for name in ("a/1.jpg", "a/2.jpg", "b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def identify(root, frames=FRAMES, known=None):
    return contents.identify(root, frames, known or {})


def rewrite(path: pathlib.Path, content: bytes, keep_time: bool = False) -> None:
    before = path.stat()
    path.write_bytes(content)
    times = (before.st_atime_ns, before.st_mtime_ns + (0 if keep_time else 1))
    os.utime(path, ns=times)


@pytest.mark.parametrize("name", ["a/1.jpg", "a/2.jpg", "b.mp4"])
def test_other_bytes_of_the_same_size_are_other_footage(root, name):
    before = identify(root)
    rewrite(root / name, name.encode())  # the same bytes at another time
    same = identify(root, known={before.stamp: before.content})
    assert same.content == before.content and same.stamp != before.stamp
    rewrite(root / name, name.upper().encode())
    changed = identify(root, known=dict([before, same]))
    assert changed.content != before.content and changed.stamp not in (before.stamp, same.stamp)


def test_a_copy_is_the_same_footage(root, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    (copy / "a").mkdir()
    for number, name in enumerate(("a/1.jpg", "a/2.jpg", "b.mp4")):
        (copy / name).write_bytes(name.encode())
        os.utime(copy / name, (number, number))
    assert identify(copy).content == identify(root).content
    assert identify(copy).stamp != identify(root).stamp


def test_other_or_missing_frames_are_other_footage(root):
    found = {identify(root, frames).content for frames in (FRAMES, FRAMES[:3], FRAMES[::-1])}
    for number, name in enumerate(("a/1.jpg", "b.mp4"), start=3):
        (root / name).rename(root / "away")
        found.add(identify(root).content)
        (root / "away").rename(root / name)
        assert len(found) == number + 1
    (root / "c").write_bytes(b"b.mp4")
    assert identify(root, ("c",)).content not in found


def test_files_that_have_their_size_and_time_are_not_read(root, monkeypatch):
    before = identify(root)
    known = {before.stamp: before.content}
    monkeypatch.setattr(contents, "resolve_inside", None)  # needed to read a file
    assert identify(root, known=known) == before
    with pytest.raises(TypeError):
        identify(root)
    rewrite(root / "b.mp4", b"longer than before", keep_time=True)
    with pytest.raises(TypeError):
        identify(root, known=known)


def test_nothing_outside_the_root_is_read(root):
    (root / "inside").mkdir()
    (root / "inside/1.jpg").symlink_to(root / "a/1.jpg")
    os.mkfifo(root / "inside/2.jpg")
    for frame in ("1.jpg", "../a/1.jpg", "2.jpg"):
        with pytest.raises(InputError, match=frame):
            identify(root / "inside", (frame,))


def test_what_is_described_is_read_again(root):
    footage = {"train": [identify(root), identify(root, FRAMES[:1])], "test": []}
    assert contents.read_described({"footage": contents.described(footage)}) == footage
    assert contents.read_described({}) == {}
    assert contents.read_described({"footage": {"test": ["of", "another", "version"]}}) == {}
