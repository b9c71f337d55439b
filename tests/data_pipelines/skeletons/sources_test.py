"""Skeletons from HDF5 files, directories of .npy and COCO's JSON."""

import functools
import itertools
import json
import os
import pickle
import re
import tempfile

import h5py
import hitsz_files
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from data_pipelines import schema
from data_pipelines.skeletons import formats, sources

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
    with sources.open_keypoints(path) as source:
        found = source.read(tracklet(folder=folder))
    assert found.dtype == np.float32
    expected = np.stack([hitsz_files.skeleton_of(frame) for frame in FRAMES])
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("flat", [False, True], ids=["tree", "flat"])
def test_a_frame_without_skeleton_has_no_confidence(tmp_path, flat):
    path = tmp_path / "skeletons.h5"
    hitsz_files.write_skeletons(path, flat=flat, leave_out=(FRAMES[0], FRAMES[3]))
    with sources.open_keypoints(path) as source:
        found = source.read(tracklet())
        strangers = source.read(tracklet(["0999/rgb/D1/1.jpg", "0999/rgb/D1/2.jpg"]))
    assert np.flatnonzero(sources.without_skeleton(found)).tolist() == [0, 3]
    assert not found[[0, 3]].any()
    assert sources.without_skeleton(strangers).all()


BROKEN = {
    "two columns": (np.zeros((17, 2)), r"found \(17, 2\).*shape \(17, 3\)"),
    "25 joints": (np.zeros((25, 3)), r"found \(25, 3\)"),
    "not a number": (np.full((17, 3), np.nan), "nose is .nan"),
    "infinite": (np.full((17, 3), np.inf), "nose is .inf"),
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
        sources.open_keypoints(path) as source,
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
    with sources.open_keypoints(path) as source, pytest.raises(ValueError, match="a group"):
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
        with sources.open_keypoints(path) as source, pytest.raises(ValueError, match=message):
            source.read(tracklet())


def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of skeletons"):
        sources.open_keypoints(tmp_path / "nothing.h5")
    for name, message in (
        ("poses.pkl", "HDF5 files .names that end"),
        ("text.h5", "not a readable"),
    ):
        (tmp_path / name).write_text("no skeletons")
        with pytest.raises(ValueError, match=message):
            sources.open_keypoints(tmp_path / name)
    h5py.File(tmp_path / "empty.h5", "w").close()
    with pytest.raises(ValueError, match="is empty"):
        sources.open_keypoints(tmp_path / "empty.h5")


def test_finds_the_skeletons_of_a_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "mean.npy").touch()  # beside no image
    with pytest.raises(FileNotFoundError, match=r"make them with launch/footage/extract_skel"):
        sources.find_keypoints(root)
    (root / "0001/rgb/D1").mkdir(parents=True)
    (root / "0001/rgb/D1/1.npy").touch()
    assert sources.find_keypoints(root) == root
    (root / "skeletons").mkdir()
    assert sources.find_keypoints(root) == root / "skeletons"
    (root / "skeletons.json").touch()
    assert sources.find_keypoints(root) == (root / "skeletons.json").resolve()
    (root / "pose.hdf5").touch()
    assert sources.find_keypoints(root) == (root / "pose.hdf5").resolve()
    (root / "other.h5").touch()
    with pytest.raises(ValueError, match=r"several HDF5 files \(other.h5, pose.hdf5\)"):
        sources.find_keypoints(root)
    (root / "skeletons.h5").touch()
    assert sources.find_keypoints(root) == (root / "skeletons.h5").resolve()
    (root / "skeletons.h5").rename(root / "skeletons.hdf5")
    assert sources.find_keypoints(root) == (root / "skeletons.hdf5").resolve()
    (root / "skeletons.hdf5").unlink()
    (tmp_path / "outside.h5").touch()
    (root / "skeletons.h5").symlink_to(tmp_path / "outside.h5")
    with pytest.raises(ValueError, match="out of the dataset's root"):
        sources.find_keypoints(root)


# What all files have in common: how a frame and its skeleton are matched.


@pytest.mark.parametrize(
    ("frame", "key"),
    [
        ("1/IR/CQ1/1_IR_CQ1_1_8535.jpg", "1/IR/CQ1/1_IR_CQ1_1_8535"),
        ("alice/visible/1/walk/000012.jpg", "alice/visible/1/walk/000012"),
        ("alice/visible/1/walk.mp4#12", "alice/visible/1/walk/12"),
        ("alice/visible/1/walk.one.mp4#12", "alice/visible/1/walk.one/12"),
        ("alice/visible.old/1/walk.jpg", "alice/visible.old/1/walk"),
        ("take#2/1.jpg", "take#2/1"),
        ("a/b/c/frame.0001", "a/b/c/frame.0001"),
        ("a/b/c/frame.0001.PNG", "a/b/c/frame.0001"),
        ("a/b/c/frame.0001.webp", "a/b/c/frame.0001"),
        ("a/b/walk.0001#2", "a/b/walk.0001#2"),
        ("./a//b/1.png", "a/b/1"),
        ("1.jpg", "1"),
    ],
)
def test_the_key_of_a_frame(frame, key):
    assert "/".join(sources.key_of(frame)) == key


def write_hdf5(path, skeletons, flat=False):
    with h5py.File(path, "w") as file:
        for key, skeleton in skeletons.items():
            file[key.replace("/", "_") if flat else key] = skeleton


def write_npy(path, skeletons):
    for key, skeleton in skeletons.items():
        file = path / f"{key}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, skeleton)


def entry(name, skeleton, **fields):
    numbers = np.asarray(skeleton, float).ravel().tolist()
    return {"image_id": name, "category_id": 1, "keypoints": numbers, "bbox": [1, 2, 3, 4]} | fields


def write_json(path, skeletons):
    path.write_text(json.dumps([entry(f"{key}.jpg", s) for key, s in skeletons.items()]))


SOURCES = {
    "tree": ("s.h5", write_hdf5),
    "flat": ("s.hdf5", lambda path, skeletons: write_hdf5(path, skeletons, flat=True)),
    "npy": ("directory", write_npy),
    "json": ("s.json", write_json),
}


def skeleton(seed) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 9, (17, 3)).astype(np.float32)


def read(path, *frames) -> np.ndarray:
    with sources.open_keypoints(path) as source:
        return source.read(schema.Tracklet(schema.VISIBLE, "1", 1, frames, 1))


@pytest.fixture(params=SOURCES)
def source_of(request, tmp_path):
    """Writes skeletons, {key: float[17, 3]}, in one of the formats; returns the path."""
    name, write = SOURCES[request.param]

    def write_source(skeletons):
        write(tmp_path / name, skeletons)
        return tmp_path / name

    return write_source


def test_the_longest_end_of_four_parts_or_more_counts(source_of):
    keys = ("x/a/b/c/1", "a/b/c/1", "b/c/1", "v/w/x/y/z/7", "shallow/2", "3")
    path = source_of({key: skeleton(seed) for seed, key in enumerate(keys)})
    found = read(path, "x/a/b/c/1.jpg", "shallow/2.jpg", "3.jpg", "v/w/x/y/z.mp4#7")
    np.testing.assert_array_equal(found, [skeleton(0), skeleton(4), skeleton(5), skeleton(3)])
    found = read(path, "Train/Train/a/b/c/1.jpg", "Train/Train/x/a/b/c/1.png")
    np.testing.assert_array_equal(found, [skeleton(1), skeleton(0)])
    assert sources.without_skeleton(read(path, "y/a/b/d/1.jpg", "a/b/c/4.jpg", "9.jpg")).all()
    assert read(path).shape == (0, 17, 3)


def test_skeletons_for_two_folders_of_frames_are_refused(source_of):
    path = source_of({"visible/1/walk/12": skeleton(0)})
    frames = ("alice/visible/1/walk/12.jpg", "bob/visible/1/walk/12.jpg")
    for frame in frames:
        np.testing.assert_array_equal(read(path, frame), [skeleton(0)])
    with pytest.raises(ValueError, match=r"fit frames of both alice/visible.* and bob/visible"):
        read(path, *frames)
    with pytest.raises(ValueError, match=r"both alice/visible/1/walk/ and .*/walk.mp4"):
        read(path, frames[0], "alice/visible/1/walk.mp4#12")


def test_values_that_make_no_sense_are_named(source_of):
    for place, value, joint in (
        ((3, 2), -0.1, "left_ear"),
        ((3, 0), np.nan, "left_ear"),
        ((0, 1), 1e300, "nose"),
        ((5, 1), 1e25, "left_shoulder"),  # finite in float32
        ((16, 2), 1e9, "right_ankle"),
    ):
        broken = skeleton(0).astype(np.float64)
        broken[place] = value
        path = source_of({"a/b/c/1": skeleton(1), "a/b/c/2": broken})
        with pytest.raises(ValueError, match=joint) as error:
            read(path, "a/b/c/1.jpg", "a/b/c/2.jpg")
        assert f"{path}: skeleton of a/b/c/2.jpg" in str(error.value)
        assert read(path, "a/b/c/1.jpg").any()


def test_names_in_either_form_of_unicode(source_of):
    """Macs store the longer form; a pose estimator elsewhere may have written the other one."""
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    for stored, asked in ((composed, decomposed), (decomposed, composed)):
        path = source_of({f"{stored}/visible/{stored}/{stored}": skeleton(3)})
        for frame in (
            f"{asked}/visible/{asked}/{asked}.jpg",
            f"{asked}/visible/{stored}/{asked}.png",
        ):
            np.testing.assert_array_equal(read(path, frame), [skeleton(3)])


@pytest.mark.parametrize("kind", ["flat", "json"])
def test_names_of_windows(tmp_path, kind):
    name, write = SOURCES["tree" if kind == "flat" else kind]
    write(tmp_path / name, {"alice\\visible\\door\\walk\\1": skeleton(3)})
    found = read(tmp_path / name, "alice/visible/door/walk/1.jpg", "alice/visible/door/walk/2.jpg")
    np.testing.assert_array_equal(found, [skeleton(3), np.zeros((17, 3))])


@pytest.mark.parametrize(
    ("stored", "shape"),
    [
        ("keypoints/alice/visible/door/walk/1", (17, 3)),  # a group on top is part of the name
        ("alice/visible/door/walk", (2, 17, 3)),  # an array of a tracklet
        ("alice\\visible\\door\\walk\\x\\1", (17, 3)),
    ],
)
def test_a_source_that_matches_nothing_shows_a_name(source_of, stored, shape):
    path = source_of({stored: np.ones(shape, np.float32)[(0,) * (len(shape) - 2)]})
    frame = "alice/visible/door/walk/7.jpg"
    if path.suffix in sources.HDF5_SUFFIXES:
        with h5py.File(path, "w") as file:
            file["notes"] = h5py.ExternalLink("elsewhere.h5", "/")
            file[stored] = np.ones(shape, np.float32)
        stored = f"{stored}, of shape {shape}"
    with sources.open_keypoints(path) as source:
        assert not source.read(schema.Tracklet(schema.VISIBLE, "1", 1, (frame,), 1)).any()
        message = sources.no_match(source, frame)
    assert frame in message and "alice/visible/door/walk/7," in message
    assert stored in message and "\n" not in message


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    keys=st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=6).map(tuple), max_size=8),
    frame=st.lists(st.sampled_from("abc"), min_size=1, max_size=6).map(tuple),
)
def test_json_against_a_search(keys, frame):
    """All keys are tried: the frame's ends, else the keys that the frame is an end of."""
    numbers = {key: skeleton(seed) for seed, key in enumerate(sorted(keys))}
    ends = [frame[i:] for i in range(len(frame)) if len(frame) - i >= min(4, len(frame))]
    shorter = [key for key in ends if key in keys]
    longer = [key for key in keys if len(key) > len(frame) >= 4 and key[-len(frame) :] == frame]
    too_short = [frame[i:] for i in range(1, len(frame)) if frame[i:] in keys]
    with tempfile.TemporaryDirectory() as folder:
        path = formats.pathlib.Path(folder, "s.json")
        write_json(path, {"/".join(key): value for key, value in numbers.items()})
        if not shorter and (len(longer) > 1 or (not longer and too_short)):
            with pytest.raises(ValueError, match="is both in" if longer else "write more of"):
                read(path, "/".join(frame) + ".jpg")
            return
        found = read(path, "/".join(frame) + ".jpg")[0]
    expected = numbers[(shorter or longer)[0]] if shorter or longer else np.zeros((17, 3))
    np.testing.assert_array_equal(found, expected)


# JSON.


def test_json_of_images_and_annotations(tmp_path):
    path = tmp_path / "results.json"
    images = [{"id": 7, "file_name": "a/b/c/1.jpg", "height": 9}, {"id": 8, "file_name": "2.jpg"}]
    categories = [{"id": 1, "name": "person", "keypoints": ["nose", "left_eye"]}]
    annotations = [entry(7, skeleton(0), score=0.9, id=1), entry(8, skeleton(1), num_keypoints=17)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    np.testing.assert_array_equal(read(path, "a/b/c/1.jpg", "2.jpg"), [skeleton(0), skeleton(1)])
    path.write_text(json.dumps(annotations))
    with pytest.raises(ValueError, match=r"skeleton 0: .*number 7, .*write an object .images: "):
        read(path, "a/b/c/1.jpg")
    path.write_text(json.dumps({"images": images, "annotations": [entry(9, skeleton(0))]}))
    with pytest.raises(ValueError, match="number 9"):
        read(path, "a/b/c/1.jpg")


def test_an_id_of_two_images_is_refused(tmp_path):
    path = tmp_path / "results.json"
    images = [{"id": 7, "file_name": f"a/b/c/{number}.jpg"} for number in (1, 1, 2)]
    content = {"images": images[:2], "annotations": [entry(7, skeleton(0))]}
    path.write_text(json.dumps(content))  # the same image twice is harmless
    np.testing.assert_array_equal(read(path, "a/b/c/1.jpg"), [skeleton(0)])
    path.write_text(json.dumps(content | {"images": images}))
    with pytest.raises(
        ValueError, match=r"s.json: .* id 7 twice, for 'a/b/c/1.jpg' and 'a/b/c/2.jpg'"
    ):
        sources.open_keypoints(path)


def test_names_with_dots_and_without_an_extension_are_distinguished(tmp_path):
    path = tmp_path / "results.json"
    names = ("a/b/c/frame.0001", "a/b/c/frame.0002", "a/b/c/frame.0003.bmp")
    path.write_text(json.dumps([entry(name, skeleton(i)) for i, name in enumerate(names)]))
    found = read(path, *(f"a/b/c/frame.000{number}.jpg" for number in (1, 2, 3, 4)))
    np.testing.assert_array_equal(found[:3], [skeleton(0), skeleton(1), skeleton(2)])
    assert not found[3].any()


def test_the_best_of_several_skeletons_is_taken(tmp_path):
    path = tmp_path / "results.json"
    sure, unsure = skeleton(0), skeleton(1)
    sure[:, 2], unsure[:, 2] = 0.9, 0.3
    for scores, expected in (
        ([{"score": 0.1}, {"score": 2}], unsure),
        ([{"score": 2}, {"score": 0.1}], sure),
        ([{}, {}], sure),
        ([{"score": 0.5}, {"score": 0.5}], sure),  # the first of equals
    ):
        pairs = zip((sure, unsure), scores, strict=True)
        people = [entry("a/b/c/1.jpg", numbers, **fields) for numbers, fields in pairs]
        path.write_text(json.dumps(people))
        np.testing.assert_array_equal(read(path, "a/b/c/1.jpg"), [expected])


def test_bare_file_names_never_match_many_frames(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([entry("1.jpg", skeleton(0))]))
    np.testing.assert_array_equal(read(path, "1.jpg"), [skeleton(0)])
    with pytest.raises(ValueError, match=r"write more of the path, at least b/c/D1/1"):
        read(path, "a/b/c/D1/1.jpg")
    absolute = [entry(f"/data/{copy}/b/c/D1/1.jpg", skeleton(0)) for copy in "xy"]
    path.write_text(json.dumps(absolute[:1]))
    np.testing.assert_array_equal(read(path, "b/c/D1/1.jpg"), [skeleton(0)])
    assert not read(path, "z/b/c/D1/1.jpg").any()
    assert not read(path, "c/D1/1.jpg").any()
    path.write_text(json.dumps(absolute))
    with pytest.raises(ValueError, match="1 is both in data/x/b/c/D1 and in data/y/b/c/D1"):
        read(path, "b/c/D1/1.jpg")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(["1.jpg", "a/b/c/1.jpg", "", "/"]) | st.integers(0, 2) | JSON_VALUES
NUMBERS = st.one_of(
    st.lists(st.floats(0, 9), min_size=51, max_size=51),
    st.lists(
        st.sampled_from([1, -1, 10**400, 1e300, float("nan"), True]), min_size=51, max_size=51
    ),
    JSON_VALUES,
)
GOOD_ENTRIES = st.lists(
    st.fixed_dictionaries(
        {
            "keypoints": st.lists(st.floats(0, 9), min_size=51, max_size=51),
            "image_id": st.sampled_from([*range(5), "1.jpg", "./1", "a//b/c/1.jpg", "x/a/b/c/1"]),
        },
        optional={"score": st.integers(-2, 2) | st.none()},
    ),
    max_size=6,
)
GOOD_IMAGES = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.integers(0, 4),
            "file_name": st.sampled_from(["1.jpg", "a/b/c/1.jpg", "/x/a/b/c/1.png", "a/b/c/1.2"]),
        }
    ),
    max_size=4,
)
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {"keypoints": NUMBERS},
        optional={"image_id": NAMES, "file_name": NAMES, "score": JSON_VALUES, "id": NAMES},
    )
    | JSON_VALUES,
    max_size=3,
)
IMAGES = st.lists(
    st.fixed_dictionaries({"id": NAMES, "file_name": NAMES}) | JSON_VALUES, max_size=2
)


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(
    content=ENTRIES
    | st.fixed_dictionaries({"annotations": GOOD_ENTRIES, "images": GOOD_IMAGES})
    | st.fixed_dictionaries({"annotations": ENTRIES | JSON_VALUES, "images": IMAGES | JSON_VALUES})
    | JSON_VALUES
)
def test_any_json_reads_or_is_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "s.json")
        with open(path, "w") as file:
            json.dump(content, file)
        assert_reads_or_refuses(path, functools.partial(best_in_json, content))


def best_in_json(content, frame):
    """The skeleton of a frame in JSON that is read: the best of its path, else of longer ones."""
    images = []
    if isinstance(content, dict):
        content, images = content["annotations"], content["images"]
    named = []
    for item in content:
        name = item.get("file_name")
        if name is None:
            files = [image["file_name"] for image in images if image["id"] == item["image_id"]]
            assert len(set(files)) <= 1
            name = files[0] if files else item["image_id"]
        with np.errstate(over="ignore"):
            numbers = np.array([min(n, 1e300) for n in item["keypoints"]]).astype(np.float32)
        numbers = numbers.reshape(17, 3)
        score = numbers[:, 2].mean() if item.get("score") is None else item["score"]
        path = "/".join(["", *(part for part in name.split("/") if part not in ("", "."))])
        named.append((re.sub(r"\.(jpg|png)$", "", path), score, numbers))
    stem = f"/{frame.removesuffix('.jpg')}"
    own = [item for item in named if item[0] == stem]
    if not own and stem.count("/") >= 4:
        own = [item for item in named if item[0].endswith(stem)]
        assert len({path for path, *_ in own}) <= 1
    return max(own, key=lambda item: item[1])[2] if own else None


@pytest.mark.parametrize("text", [b"", b"[" * 200_000, b"\xff\xfe", b'[{"keypoints": 1e', b"nul"])
def test_broken_json_is_refused(tmp_path, text):
    (tmp_path / "s.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"s.json: (is empty|not a JSON file)"):
        sources.open_keypoints(tmp_path / "s.json")


def assert_reads_or_refuses(path, expected=None):
    """Reads two frames; each is refused or equals what `expected`, if given, returns for it."""
    frames = ("a/b/c/1.jpg", "1.jpg")
    try:
        found = read(path, *frames)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert found.shape == (2, 17, 3)
        assert np.isfinite(found).all()
        assert (found[..., 2] >= 0).all()
        for frame, keypoints_found in zip(frames, found, strict=True) if expected else ():
            wanted = expected(frame)
            wanted = np.zeros((17, 3)) if wanted is None else np.asarray(wanted, np.float32)
            np.testing.assert_array_equal(keypoints_found, wanted)


# .npy.


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=200).map(lambda tail: b"\x93NUMPY\x01\x00" + tail),
        st.tuples(
            st.sampled_from(["<f8", ">f4", "|O", "<f2", "<c8", "V9", "<U3", "<i4", "x", "("]),
            st.sampled_from(
                ["(17, 3)", "(17,3,)", "()", "(51,)", "(1000000000000,)", "(-1,)", "9"]
            ),
            st.binary(max_size=500)
            | st.sampled_from(["<f8", ">f4", "<f2", "<i4"]).map(
                lambda kind: np.arange(51).astype(kind).tobytes()
            ),
        ).map(
            lambda parts: (
                b"\x93NUMPY\x01\x00\x76\x00"
                + f"{{'descr': '{parts[0]}', 'fortran_order': False, 'shape': {parts[1]}, }}".ljust(
                    117
                ).encode()
                + b"\n"
                + parts[2]
            )
        ),
    )
)
def test_any_npy_reads_or_is_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        os.makedirs(os.path.join(folder, "a/b/c"))
        with open(os.path.join(folder, "a/b/c/1.npy"), "wb") as file:
            file.write(content)
        assert_reads_or_refuses(folder, functools.partial(array_in_npy, content))


def array_in_npy(content, frame):
    """The array in a .npy file that is read, whose header takes 128 bytes."""
    kind = re.search(rb"'descr': '(.*?)'", content)[1].decode()
    numbers = np.frombuffer(content, kind, 51, offset=128).reshape(17, 3)
    return numbers if frame == "a/b/c/1.jpg" else None


def test_only_small_plain_npy_inside_the_directory_are_read(tmp_path):
    root = tmp_path / "root"
    write_npy(root, {"a/b/c/1": skeleton(0).astype(">f8"), "a/b/c/2": skeleton(1).astype("f2")})
    found = read(root, "a/b/c/1.jpg", "a/b/c/2.jpg", "a/b/c/3.jpg")
    np.testing.assert_allclose(found[:2], [skeleton(0), skeleton(1)], rtol=1e-3)
    assert not found[2].any()

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    file = root / "a/b/c/3.npy"
    for write, message in (
        (lambda: np.save(file, np.array([Trap()] * 51, object).reshape(17, 3)), "found object"),
        (lambda: file.write_bytes(pickle.dumps(Trap())), "not a .npy file"),
        (lambda: np.save(file, np.zeros((17, 300))), "far more than a skeleton"),
    ):
        write()
        with pytest.raises(ValueError, match=rf"3.npy: .*{message}"):
            read(root, "a/b/c/3.jpg")
    assert not (tmp_path / "sprung").exists()
    write_npy(tmp_path, {"outside": skeleton(2)})
    file.unlink()
    file.symlink_to(tmp_path / "outside.npy")
    with pytest.raises(ValueError, match="out of the dataset's root"):
        read(root, "a/b/c/3.jpg")
    with pytest.raises(ValueError, match="out of the dataset's root"):
        sources.fingerprint(root)


# HDF5.


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(
    shape=st.sampled_from([(17, 3), (17, 2), (), (0,), (51,), (1, 17, 3), None]),
    dtype=st.sampled_from(["f2", ">f8", "i8", "u1", "?", "c8", "S4", "str", "f4,i4", "O", "ref"]),
    key=st.sampled_from(["a/b/c/1", "a/b/c/1.jpg", "a/b/c/1/2", "a/b/c", "a_b_c_1", "1", "x"]),
    other=st.sampled_from(["a/b/c/3", "a_b_c_3", "meta"]),
)
def test_any_hdf5_reads_or_is_refused(shape, dtype, key, other):
    kinds = {"str": h5py.string_dtype(), "ref": h5py.ref_dtype, "O": h5py.vlen_dtype(np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "s.h5")
        with h5py.File(path, "w") as file:
            kind = kinds.get(dtype) or np.dtype(dtype)
            numbers = np.zeros(shape or ())
            if shape is None:
                file[key] = h5py.Empty("f4")
            elif dtype in ("f2", ">f8", "i8", "u1"):
                numbers = np.arange(numbers.size).reshape(shape)
                file[key] = numbers.astype(kind)
            else:
                file.create_dataset(key, shape, kind)
            if not other.startswith(f"{key}/"):
                file[other] = np.zeros((17, 3))
            file["type"] = np.dtype("f8")
        frame = {"1": "1.jpg", "a_b_c_1": "a/b/c/1.jpg", "a/b/c/1": "a/b/c/1.jpg"}.get(
            key.removesuffix(".jpg")
        )
        assert_reads_or_refuses(path, {frame: numbers}.get)


def test_damaged_hdf5_reads_or_is_refused(tmp_path):
    path = tmp_path / "s.h5"
    write_hdf5(path, {f"a/b/c/{i}": skeleton(i) for i in range(3)})
    intact = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(intact)
        for at in rng.integers(0, len(intact), 8):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(intact) // 2, len(intact) + 1)])
        assert_reads_or_refuses(path)


# Fingerprints.


def test_fingerprints_distinguish_sources(source_of):
    some = {"a/b/c/1": skeleton(0), "a/b/d/2": skeleton(1)}
    prints = [sources.fingerprint(source_of(some))]
    assert sources.fingerprint(source_of(some)) == prints[0]
    prints.append(sources.fingerprint(source_of(some | {"a/b/d/2": skeleton(2)})))
    path = source_of(some | {"a/b/d/3": skeleton(1)})
    prints.append(sources.fingerprint(path))
    if path.is_dir():
        (path / "a/b/c/1.npy").rename(path / "a/b/c/4.npy")
        prints.append(sources.fingerprint(path))
        (path / "picture.jpg").touch()  # not a skeleton
        np.save(path / "a/large.npy", np.zeros(10_000))
        prints.append(sources.fingerprint(path))
        (path / "picture.jpg").unlink()
        assert sources.fingerprint(path) == prints[-1]
    assert all(one != other for one, other in itertools.combinations(prints, 2))
