"""Reading files that may not be regular ones, and writing all of a file or nothing."""

import concurrent.futures
import errno
import json
import os
import resource
import signal
import socket
import stat

import hitsz_files
import limits
import numpy as np
import pytest
import video_files

from data_pipelines import schema
from data_pipelines.datasets import bupt_lists, folder, hitsz_vcm
from data_pipelines.errors import InputError
from data_pipelines.footage import extraction, onnx_runtime, pose
from data_pipelines.io import files, frames
from data_pipelines.skeletons import sources
from star_jax.embedding import embeddings


@pytest.fixture(autouse=True)
def in_time():
    """A test that waits for a pipe fails instead of waiting forever."""

    def stop(*arguments):
        raise TimeoutError("still waiting")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def replace_by_pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("name", hitsz_vcm.INDEX_FILES)
def test_a_pipe_in_place_of_an_index_file_is_named(tmp_path, name):
    root = hitsz_files.write_index(tmp_path)
    replace_by_pipe(root / name)
    with pytest.raises(ValueError, match=f"^{name}: is a folder, a pipe or a device"):
        hitsz_vcm.read_index(root)


def test_a_pipe_in_place_of_a_list_is_named(tmp_path):
    replace_by_pipe(tmp_path / "train.txt")
    with pytest.raises(ValueError, match=r"^train\.txt: is a folder, a pipe or a device"):
        bupt_lists.read_index(tmp_path)


@pytest.mark.parametrize("name", ["skeletons.h5", "skeletons.hdf5", "skeletons.json"])
def test_a_pipe_in_place_of_skeletons_is_named(tmp_path, name):
    os.mkfifo(tmp_path / name)
    for read in (
        sources.open_keypoints,
        sources.fingerprint,
        lambda path: sources.find_keypoints(path.parent),
    ):
        with pytest.raises(ValueError, match=f"{name}: is a folder, a pipe or a device"):
            read(tmp_path / name)


def test_a_pipe_among_skeletons_is_named(tmp_path):
    place = tmp_path / "skeletons" / "1" / "rgb" / "D1"
    place.mkdir(parents=True)
    os.mkfifo(place / "7.npy")
    tracklet = schema.Tracklet(schema.VISIBLE, "1", 1, ("1/rgb/D1/7.jpg",), 1)
    with pytest.raises(ValueError, match=r"7\.npy: is a folder, a pipe or a device"):
        sources.fingerprint(tmp_path / "skeletons")
    with (
        sources.open_keypoints(tmp_path / "skeletons") as source,
        pytest.raises(ValueError, match=r"7\.npy: is a folder, a pipe or a device"),
    ):
        source.read(tracklet)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "link to a device"])
def test_a_frame_must_be_a_regular_file(tmp_path, kind):
    path = tmp_path / "alice" / "visible" / "1" / "walk" / "1.jpg"
    path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as patch:
            patch.chdir(path.parent)  # names of sockets are short
            listener.bind(path.name)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(os.devnull)
    name = path.relative_to(tmp_path).as_posix()
    tracklet = schema.Tracklet(schema.VISIBLE, "alice", 1, (name,), 1)
    reason = "leads out" if kind == "link to a device" else "is a folder, a pipe or a device"
    (error,) = frames.frame_errors(tmp_path, tracklet)
    assert error.startswith(f"{name}: {reason}")


def test_the_check_names_pipes_in_place_of_videos(tmp_path):
    video_files.write_image(tmp_path / "alice" / "visible" / "1" / "walk" / "1.jpg")
    os.mkfifo(tmp_path / "alice" / "visible" / "1" / "run.mp4")
    findings = folder.check(tmp_path, without_skeletons=True)
    assert findings.wrong == [
        "alice/visible/1/run.mp4: is a folder, a pipe or a device, not a regular file; put the "
        "file itself there"
    ]


def test_a_pipe_in_place_of_a_pose_model_or_its_output_is_named(tmp_path):
    os.mkfifo(tmp_path / "pose.onnx")
    with pytest.raises(ValueError, match=r"pose\.onnx: is a folder, a pipe or a device"):
        pose.load_model(tmp_path / "pose.onnx")
    os.mkfifo(tmp_path / "out.h5")
    model = pose.PoseModel("0", (64, 48), 1, False, False, None)
    with pytest.raises(ValueError, match=r"out\.h5: is a folder, a pipe or a device"):
        extraction.extract(model, tmp_path, [], tmp_path / "out.h5")


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"
PAGE = "\n <!DOCTYPE html>\n<html>Sign in</html>"


@pytest.mark.parametrize(("content", "what"), [(LFS, "LFS"), (PAGE, "web page"), ("", "empty")])
def test_what_was_downloaded_in_place_of_a_file_is_named(tmp_path, content, what):
    one_frame = schema.Tracklet(schema.VISIBLE, "alice", 1, ("walk/1.jpg",), 1)
    (tmp_path / "walk").mkdir()
    for name, read in {
        "skeletons.h5": sources.open_keypoints,
        "skeletons.json": sources.open_keypoints,
        "pose.onnx": lambda path: onnx_runtime.open_image_model(path, "cpu", "images"),
        "embeddings.npz": embeddings.load,
        "walk.mp4": lambda path: frames.count_frames(path.parent, path.name),
        "walk/1.npy": lambda path: sources.open_keypoints(tmp_path).read(one_frame),
    }.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=f"{name}: is .*{what}"):
            read(tmp_path / name)


def test_too_many_open_files_are_no_fault_of_footage_or_skeletons(tmp_path):
    for name in ("walk/1.jpg", "walk/1.png"):
        video_files.write_image(tmp_path / name)
    video_files.write_video(tmp_path / "walk.mp4", 2)
    np.save(tmp_path / "walk/1.npy", np.ones((17, 3), np.float32))
    (tmp_path / "skeletons.json").write_text("[]")
    of = {
        name: schema.Tracklet(schema.VISIBLE, "alice", 1, (name,), 1)
        for name in ("walk/1.jpg", "walk/1.png", "walk.mp4#1")
    }
    skeletons = sources.open_keypoints(tmp_path)
    for name, read in {
        "walk/1.jpg": lambda: frames.read_frames(tmp_path, of["walk/1.jpg"]),
        "walk/1.png": lambda: frames.read_frames(tmp_path, of["walk/1.png"]),
        "walk.mp4": lambda: frames.read_frames(tmp_path, of["walk.mp4#1"]),
        "walk/1.npy": lambda: skeletons.read(of["walk/1.jpg"]),
        "skeletons.json": lambda: sources.open_keypoints(tmp_path / "skeletons.json"),
    }.items():
        read()
        with limits.no_file_can_be_opened(), pytest.raises(OSError) as error:
            read()
        assert error.value.errno == errno.EMFILE, name
        assert error.value.filename == str(tmp_path / name)


def test_a_file_that_only_mentions_a_page_is_not_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"<html>": "version https://git-lfs.github.com/spec/v1"}')
    files.refuse_stand_in(tmp_path / "a.json")
    files.refuse_stand_in(tmp_path / "missing.json")


def test_concurrent_writers_of_one_file_do_not_mix(tmp_path):
    """Each of eight writes its own number 25 times; any reader sees one of these files."""
    path = tmp_path / "report.json"
    contents = [{"writer": number, "padding": "x" * 1000 * number} for number in range(8)]

    def write(content):
        for _ in range(25):
            files.write_json(path, content)
            assert json.loads(path.read_bytes()) in contents

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(write, content) for content in contents]:
            result.result()
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    files.write_json(path, {"old": 1})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=rf"^{path}: cannot be written \(File too large\)$"):
            files.write_file(path, np.zeros(200_000, np.uint8).tobytes())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    files.write_json(path, {"old": 1})
    before = path.read_bytes()

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {"new": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
