"""Skeletons out of HDF5 files."""

import h5py
import hitsz_files
import numpy as np
import pytest

from data_pipelines import keypoints, schema

ROW = hitsz_files.SPLITS["train"][1]
FRAMES = tuple(ROW.frames())


def tracklet(frames=FRAMES, folder="") -> schema.Tracklet:
    return schema.Tracklet(
        modality=schema.VISIBLE,
        identity=f"{ROW.identity:04d}",
        camera=ROW.camera,
        frames=tuple(folder + frame for frame in frames),
        row=2,
    )


@pytest.mark.parametrize("flat", [False, True], ids=["tree", "flat"])
@pytest.mark.parametrize("suffix", ["", ".jpg"], ids=["bare", "jpg"])
@pytest.mark.parametrize("folder", ["", "Train/", "Train/Train/"])
def test_reads_every_layout(tmp_path, flat, suffix, folder):
    path = tmp_path / "skeletons.h5"
    hitsz_files.write_skeletons(path, flat=flat, suffix=suffix)
    with keypoints.open_keypoints(path) as source:
        found = source.read(tracklet(folder=folder))
    assert found.dtype == np.float32
    expected = np.stack([hitsz_files.skeleton_of(frame) for frame in FRAMES])
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("flat", [False, True], ids=["tree", "flat"])
def test_a_frame_without_skeleton_has_no_confidence(tmp_path, flat):
    path = tmp_path / "skeletons.h5"
    hitsz_files.write_skeletons(path, flat=flat, leave_out=(FRAMES[0], FRAMES[3]))
    with keypoints.open_keypoints(path) as source:
        found = source.read(tracklet())
        strangers = source.read(tracklet(["0999/rgb/D1/1.jpg", "0999/rgb/D1/2.jpg"]))
    assert np.flatnonzero(keypoints.without_skeleton(found)).tolist() == [0, 3]
    assert not found[[0, 3]].any()
    assert keypoints.without_skeleton(strangers).all()


BROKEN = {
    "two columns": (np.zeros((17, 2)), r"found \(17, 2\).*shape \(17, 3\)"),
    "25 joints": (np.zeros((25, 3)), r"found \(25, 3\)"),
    "not a number": (np.full((17, 3), np.nan), "not a finite number"),
    "infinite": (np.full((17, 3), np.inf), "not a finite number"),
    "text": (np.full((17, 3), b"left knee"), "expected floats"),
}


@pytest.mark.parametrize(("skeleton", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_skeleton_is_named(tmp_path, skeleton, message):
    path = tmp_path / "skeletons.h5"
    hitsz_files.write_skeletons(path, leave_out=(FRAMES[2],))
    key = FRAMES[2].removesuffix(".jpg")
    with h5py.File(path, "a") as file:
        file[key] = skeleton
    with (
        keypoints.open_keypoints(path) as source,
        pytest.raises(ValueError, match=message) as error,
    ):
        source.read(tracklet())
    assert str(path) in str(error.value)
    assert key in str(error.value)


def test_a_group_in_place_of_a_skeleton_is_named(tmp_path):
    path = tmp_path / "skeletons.h5"
    hitsz_files.write_skeletons(path, leave_out=(FRAMES[2],))
    with h5py.File(path, "a") as file:
        file.create_group(FRAMES[2].removesuffix(".jpg"))
    with keypoints.open_keypoints(path) as source, pytest.raises(ValueError, match="a group"):
        source.read(tracklet())


def test_no_other_file_is_opened(tmp_path):
    secret = tmp_path / "secret.h5"
    hitsz_files.write_skeletons(secret)
    linked = tmp_path / "linked.h5"
    identity = FRAMES[0].split("/")[0]
    with h5py.File(linked, "w") as file:
        file["0001/ir/D1/1"] = np.zeros((17, 3))
        file[identity] = h5py.ExternalLink("secret.h5", f"/{identity}")
    external = tmp_path / "external.h5"
    (tmp_path / "raw").write_bytes(bytes(17 * 3 * 4))
    with h5py.File(external, "w") as file:
        file.create_dataset(
            FRAMES[0].removesuffix(".jpg"), (17, 3), "f4", external=[("raw", 0, 17 * 3 * 4)]
        )
    virtual = tmp_path / "virtual.h5"
    layout = h5py.VirtualLayout((17, 3), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", FRAMES[0].removesuffix(".jpg"), (17, 3))
    with h5py.File(virtual, "w") as file:
        file.create_virtual_dataset(FRAMES[0].removesuffix(".jpg"), layout)
    for path, message in (
        (linked, "is a link"),
        (external, "kept in another file"),
        (virtual, "kept in another file"),
    ):
        with keypoints.open_keypoints(path) as source, pytest.raises(ValueError, match=message):
            source.read(tracklet())


def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of skeletons"):
        keypoints.open_keypoints(tmp_path / "nothing.h5")
    for name, message in (
        ("poses.pkl", "HDF5 files, whose names end"),
        ("text.h5", "not a readable"),
    ):
        (tmp_path / name).write_text("no skeletons")
        with pytest.raises(ValueError, match=message):
            keypoints.open_keypoints(tmp_path / name)
    h5py.File(tmp_path / "empty.h5", "w").close()
    with pytest.raises(ValueError, match="is empty"):
        keypoints.open_keypoints(tmp_path / "empty.h5")


def test_finds_the_skeletons_of_a_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(FileNotFoundError, match="COCO-17 keypoints of every frame"):
        keypoints.find_keypoints(root)
    (root / "pose.hdf5").touch()
    assert keypoints.find_keypoints(root) == (root / "pose.hdf5").resolve()
    (root / "other.h5").touch()
    with pytest.raises(ValueError, match=r"several HDF5 files \(other.h5, pose.hdf5\)"):
        keypoints.find_keypoints(root)
    (root / "skeletons.h5").touch()
    assert keypoints.find_keypoints(root) == (root / "skeletons.h5").resolve()
    (root / "skeletons.h5").unlink()
    (tmp_path / "outside.h5").touch()
    (root / "skeletons.h5").symlink_to(tmp_path / "outside.h5")
    with pytest.raises(ValueError, match="out of the dataset's root"):
        keypoints.find_keypoints(root)
