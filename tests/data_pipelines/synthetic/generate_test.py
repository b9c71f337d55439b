import csv
import dataclasses
import hashlib
import re

import cv2
import h5py
import numpy as np
import pytest
import simplejpeg

from data_pipelines.datasets import bupt_lists, hitsz_vcm
from data_pipelines.records.dataset import open_dataset
from data_pipelines.schema import INFRARED, VISIBLE
from data_pipelines.synthetic import contact_sheet, generate, people, plan
from data_pipelines.synthetic.plan import SIZES, PlannedTracklet

pytestmark = pytest.mark.slow

TINY = SIZES["tiny"]
NAME = re.compile(r"(\d{4})M([12])D(\d+)T(\d+)F(\d+)\.jpg")
# The smallest dataset with every part of the layout, for tests that draw more than one.
SPECK = dataclasses.replace(
    TINY,
    train=dataclasses.replace(TINY.train, identities=1),
    test=dataclasses.replace(TINY.test, identities=1),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "tiny"
    generate.generate(path, "tiny", seed=3, processes=1)
    return path


def read_split(root, split):
    names = (root / "info" / f"{split}_name.txt").read_text().splitlines()
    rows = (root / "info" / f"track_{split}_info.txt").read_text().splitlines()
    return [NAME.fullmatch(name).groups() for name in names], [row.split() for row in rows]


def digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".h5")
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def skeletons_of(root):
    found = {}
    with h5py.File(root / "skeletons.h5", "r") as file:
        file.visititems(
            lambda name, node: (
                found.update({name: node[()]}) if isinstance(node, h5py.Dataset) else None
            )
        )
    return found


@pytest.mark.parametrize(("split", "cameras"), [("train", 6), ("test", 12)])
def test_rows_cut_the_name_list_into_tracklets(root, split, cameras):
    names, rows = read_split(root, split)
    next_line = 1
    for modality, first, last, pid, camera in rows:
        assert int(first) == next_line
        assert 1 <= int(last) - int(first) + 1 <= 24
        assert 1 <= int(camera) <= cameras
        assert re.fullmatch(r"\d{4}", pid)
        frames = names[int(first) - 1 : int(last)]
        assert {frame[:3] for frame in frames} == {(pid, modality, camera)}
        assert len({frame[3] for frame in frames}) == 1  # one track
        numbers = [int(frame[4]) for frame in frames]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        next_line = int(last) + 1
    assert next_line == len(names) + 1


def test_every_name_is_one_frame_of_its_own_and_no_frame_is_unnamed(root):
    paths = []
    for split in ("train", "test"):
        for pid, modality, camera, _, frame in read_split(root, split)[0]:
            folder = {"1": "ir", "2": "rgb"}[modality]
            paths.append(f"{split.capitalize()}/{pid}/{folder}/D{camera}/{frame}.jpg")
    on_disk = {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")}
    assert len(paths) == len(set(paths))
    assert set(paths) == on_disk


def test_frames_are_jpegs_of_the_configured_size_and_infrared_is_grey(root):
    for modality, gray in (("rgb", False), ("ir", True)):
        for path in sorted(root.glob(f"Train/*/{modality}/*/1.jpg")):
            picture = simplejpeg.decode_jpeg(path.read_bytes()).astype(int)
            assert picture.shape == (TINY.height, TINY.width, 3)
            assert (np.ptp(picture, axis=-1).max() == 0) == gray


def test_queries_are_exactly_the_infrared_rows_of_the_test_split(root):
    lines = (root / "info" / "query_IDX.txt").read_text().splitlines()
    _, rows = read_split(root, "test")
    assert len(lines) == 1
    assert [int(number) for number in lines[0].split()] == [
        number for number, row in enumerate(rows, start=1) if row[0] == "1"
    ]


def test_identities_are_disjoint_and_no_camera_serves_both_modalities(root):
    identities = []
    for split, long_tracklets in (("train", 2), ("test", 1)):
        _, rows = read_split(root, split)
        identities.append({row[3] for row in rows})
        for pid in identities[-1]:
            own = [row for row in rows if row[3] == pid]
            cameras = [{row[4] for row in own if row[0] == code} for code in "12"]
            assert not cameras[0] & cameras[1]
            for code in "12":
                lengths = [int(row[2]) - int(row[1]) + 1 for row in own if row[0] == code]
                assert sum(length >= 12 for length in lengths) >= long_tracklets
    assert not identities[0] & identities[1]
    assert [len(split) for split in identities] == [6, 6]


@pytest.mark.parametrize("size", ["demo", "full"])
def test_the_plans_of_the_large_sizes_follow_their_configs(size):
    config = SIZES[size]
    planned = plan.plan(config, seed=0)
    assert sum(t.num_frames for t in planned) < {"demo": 36_000, "full": 480_000}[size]
    for split in ("train", "test"):
        sizes = getattr(config, split)
        long_tracklets = {}
        for tracklet in planned:
            if tracklet.split == split:
                key = tracklet.identity, tracklet.modality
                long_tracklets[key] = long_tracklets.get(key, 0) + (tracklet.num_frames >= 12)
        assert len(long_tracklets) == 2 * sizes.identities
        assert min(long_tracklets.values()) >= sizes.long_tracklets


def test_full_has_about_as_many_tracklets_and_frames_as_the_real_dataset():
    planned = plan.plan(SIZES["full"], seed=0)
    counts = [sum(t.split == split for t in planned) for split in ("train", "test")]
    np.testing.assert_allclose(counts, [11_061, 10_802], rtol=0.05)
    np.testing.assert_allclose(sum(t.num_frames for t in planned), 463_259, rtol=0.05)
    short = np.mean([t.num_frames < 12 for t in planned])
    assert 0.05 < short < 0.2  # 12 % in the real one


def test_too_few_cameras_is_an_error():
    config = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, cameras=3))
    with pytest.raises(ValueError, match="need 4 cameras, but there are 3"):
        plan.plan(config, seed=0)


def test_skeletons_are_in_the_authors_tree_and_few_are_missing(root):
    skeletons = skeletons_of(root)
    frames = {
        f"{pid}/{'ir' if modality == '1' else 'rgb'}/D{camera}/{frame}"
        for split in ("train", "test")
        for pid, modality, camera, _, frame in read_split(root, split)[0]
    }
    assert set(skeletons) < frames
    assert len(skeletons) > 0.93 * len(frames)
    for skeleton in skeletons.values():
        assert skeleton.shape == (17, 3)
        assert skeleton.dtype == np.float32
        assert np.isfinite(skeleton).all()
        assert (skeleton[:, 2] > 0).all() and (skeleton[:, 2] <= 1).all()


def test_keypoints_are_near_the_joints_and_uncertain_where_covered():
    config = dataclasses.replace(TINY, occluded_share=1.0, swapped_share=0.0)
    drawn = [
        generate.draw_tracklet(config, 0, tracklet) for tracklet in plan.plan(config, seed=0)[:8]
    ]
    keypoints = np.concatenate([tracklet.keypoints for tracklet in drawn])
    covered = np.concatenate([tracklet.covered for tracklet in drawn])
    joints = np.concatenate([tracklet.joints for tracklet in drawn])
    error = np.linalg.norm(keypoints[..., :2] - joints, axis=-1) / config.height
    assert 0.02 < covered.mean() < 0.6
    assert np.median(error[~covered]) < 0.03
    assert np.median(error[covered]) > 2 * np.median(error[~covered])
    assert keypoints[covered, 2].mean() < 0.35
    assert keypoints[~covered, 2].mean() > 0.6


def test_joints_are_drawn_at_their_coordinates():
    studio = dataclasses.replace(TINY, difficulty=0.0, height=144, width=72)
    tracklet = PlannedTracklet("train", 1, 1, VISIBLE, 1, 1, 1, 6)
    drawn = generate.draw_tracklet(studio, 0, tracklet)
    background = np.median(drawn.frames[:, :5].reshape(-1, 3), axis=0)  # even, at difficulty 0
    differs = np.abs(drawn.frames.astype(int) - background).max(axis=-1) > 12
    x, y = np.moveaxis(drawn.joints.round().astype(int), -1, 0)
    inside = (x >= 0) & (x < 72) & (y >= 0) & (y < 144)
    assert inside.mean() > 0.95
    on_person = differs[np.arange(6)[:, None], y.clip(0, 143), x.clip(0, 71)]
    assert on_person[inside].mean() > 0.9
    assert differs.mean() < 0.5


def test_swapped_legs_and_arms_are_the_mirrored_joints():
    truth = np.arange(2 * 17 * 2, dtype=float).reshape(2, 17, 2)
    nothing = np.zeros((2, 17), bool)
    rng = np.random.default_rng(0)
    swapped = people.estimate_keypoints(rng, truth, nothing, nothing, error=0.0, swapped_share=1.0)
    for left in (5, 7, 9, 11, 13, 15):
        np.testing.assert_array_equal(swapped[:, left, :2], truth[:, left + 1])
        np.testing.assert_array_equal(swapped[:, left + 1, :2], truth[:, left])
    np.testing.assert_array_equal(swapped[:, :5, :2], truth[:, :5])


@pytest.mark.parametrize(("yaw", "hidden_side"), [(90, "left"), (-90, "right")])
def test_the_far_side_is_hidden_in_profile(yaw, hidden_side):
    standing = dataclasses.replace(people.Gait(), stride=0.0, arm_swing=0.0, lean=0.0)
    points = people.walk(people.Body(), standing, np.zeros(1))
    hidden = people.self_occluded(*people.project(points, np.deg2rad(yaw), 0.0))[0]
    other = {"left": "right", "right": "left"}[hidden_side]
    for joint in ("ear", "shoulder", "knee"):
        assert hidden[people.JOINT[f"{hidden_side}_{joint}"]]
        assert not hidden[people.JOINT[f"{other}_{joint}"]]


def test_walking_keeps_bones_and_a_foot_on_the_ground():
    body = people.Body()
    points = people.walk(body, people.Gait(), np.linspace(0, 6, 20))
    for start, end, length in (
        ("left_hip", "left_knee", body.thigh),
        ("right_knee", "right_ankle", body.shin),
        ("left_shoulder", "left_elbow", body.upper_arm),
        ("right_elbow", "right_wrist", body.forearm),
    ):
        bone = points[:, people.JOINT[start]] - points[:, people.JOINT[end]]
        np.testing.assert_allclose(np.linalg.norm(bone, axis=-1), length)
    assert (points[..., 1] > 0).all()
    assert (points[..., 1].min(axis=1) < 0.06).all()


def test_garments_differ_from_their_pattern_in_infrared():
    for seed in range(50):
        garment = people.draw_garment(np.random.default_rng(seed), people.TOP_PATTERNS)
        assert abs(garment.base.infrared - garment.accent.infrared) > 0.35
        for material in (garment.base, garment.accent):
            for modality in (VISIBLE, INFRARED):
                paint = material.paint(modality)
                assert paint.shape == (3,) and (paint >= 0).all() and (paint <= 1).all()


def test_the_number_of_processes_changes_nothing(tmp_path):
    generate.generate(tmp_path / "one", SPECK, seed=1, processes=1)
    generate.generate(tmp_path / "two", SPECK, seed=1, processes=2)
    generate.generate(tmp_path / "other", SPECK, seed=2, processes=1)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    one, two = skeletons_of(tmp_path / "one"), skeletons_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, skeleton in one.items():
        np.testing.assert_array_equal(skeleton, two[name])
    assert digest(tmp_path / "one") != digest(tmp_path / "other")


def test_attributes_name_every_tracklet(root):
    with open(root / "attributes.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for split in ("train", "test"):
        _, rows = read_split(root, split)
        listed = [
            ({"ir": "1", "rgb": "2"}[r["modality"]], r["identity"], r["camera"], int(r["frames"]))
            for r in table
            if r["split"] == split
        ]
        assert listed == [
            (modality, pid, camera, int(last) - int(first) + 1)
            for modality, first, last, pid, camera in rows
        ]
    for row in table:
        assert (row["occluder"] == "none") <= (float(row["occlusion"]) == 0)


def test_packed_records_say_that_the_people_are_drawn(root, tmp_path):
    packed = hitsz_vcm.prepare(root, tmp_path)
    assert open_dataset(packed).is_synthetic


def test_a_finished_dataset_is_left_unchanged(root, capsys):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    generate.generate(root, "tiny", seed=3)
    assert "already rendered" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_anything_else_is_not_overwritten(root, tmp_path):
    with pytest.raises(FileExistsError, match=r"generator\.json is missing or differs"):
        generate.generate(root, "tiny", seed=4)
    with pytest.raises(FileExistsError):
        generate.generate(root, "demo", seed=3)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="choose another folder"):
        generate.generate(tmp_path, "tiny")
    with pytest.raises(FileExistsError):
        generate.generate(tmp_path / "mine.txt", "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unknown_size_or_layout_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="'mars' is unknown; choose one of hitsz_vcm, bupt_campus"):
        generate.generate(tmp_path / "set", "tiny", layout="mars")
    with pytest.raises(ValueError, match="'huge' is unknown; choose one of tiny, demo, full"):
        generate.generate(tmp_path / "set", "huge")


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    real, calls = generate.draw_tracklet, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(generate, "draw_tracklet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate.generate(tmp_path / "set", SPECK, processes=1)
    assert list(tmp_path.iterdir()) == []


def test_the_contact_sheet_shows_every_row(root, tmp_path):
    path = tmp_path / "sheet.png"
    tracklets = hitsz_vcm.read_index(root, min_frames=1).train
    contact_sheet.contact_sheet(root, tracklets, path, identities=3, rows=2, frames=4)
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
    assert width == 2 * (4 * TINY.width + 4)
    assert height == 2 * (4 * TINY.height + 4)


# --- the layout of BUPTCampus -------------------------------------------------------------------


@pytest.fixture(scope="module")
def bupt_root(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "bupt"
    generate.generate(path, "tiny", seed=3, processes=1, layout="bupt_campus")
    return path


def decode(root, name):
    return simplejpeg.decode_jpeg((root / name).read_bytes()).astype(float)


def test_a_pair_shows_the_same_moments(bupt_root):
    planned = plan.plan_pairs(TINY, seed=3)
    for visible, infrared in zip(planned[:12:2], planned[1:12:2], strict=True):
        assert (visible.modality, infrared.modality) == (VISIBLE, INFRARED)
        assert dataclasses.replace(infrared, modality=VISIBLE) == visible
        drawn = [generate.draw_tracklet(TINY, 3, tracklet) for tracklet in (visible, infrared)]
        np.testing.assert_array_equal(drawn[0].joints, drawn[1].joints)
        np.testing.assert_array_equal(drawn[0].covered, drawn[1].covered)
        for name in ("yaw_degrees", "occluder", "light", "resolution", "motion_blur"):
            assert drawn[0].attributes[name] == drawn[1].attributes[name]
        # Pose errors and sensor noise are independent.
        assert not np.isclose(drawn[0].keypoints, drawn[1].keypoints).all(axis=-1).any()


def test_the_noise_of_a_pair_is_not_shared(monkeypatch):
    noise = []

    def develop(canvas, rng, *args, **kwargs):
        noise.append(rng.bytes(16))
        return np.zeros((TINY.height, TINY.width, 3), np.uint8)

    monkeypatch.setattr(generate.scenes, "develop", develop)
    for tracklet in plan.plan_pairs(TINY, seed=3)[:4]:
        generate.draw_tracklet(TINY, 3, tracklet)
    assert len(noise) == len(set(noise)) > 20


def test_fake_infrared_frames_are_grey_copies_of_the_visible_ones(bupt_root):
    visible = sorted(bupt_root.glob("DATA/*/RGB/*/*.jpg"))
    fakes = sorted(bupt_root.glob("DATA/*/FakeIR/*/*.jpg"))
    names = [path.relative_to(bupt_root).as_posix() for path in visible]
    assert [path.relative_to(bupt_root).as_posix() for path in fakes] == sorted(
        map(bupt_lists.fake_infrared_path, names)
    )
    for name in names[::40]:
        fake = decode(bupt_root, bupt_lists.fake_infrared_path(name))
        luminance = decode(bupt_root, name) @ [0.299, 0.587, 0.114]
        assert np.abs(fake.mean(axis=-1) - luminance).mean() < 3
        assert np.ptp(fake, axis=-1).max() <= 2


def test_the_lists_name_every_drawn_frame_once(bupt_root):
    index = bupt_lists.read_index(bupt_root, auxiliary=True)
    frames = [name for rows in index.splits.values() for t in rows for name in t.frames]
    on_disk = {path.relative_to(bupt_root).as_posix() for path in bupt_root.rglob("*.jpg")}
    assert len(frames) == len(set(frames))
    assert set(frames) == {name for name in on_disk if "/FakeIR/" not in name}
    with open(bupt_root / "attributes.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == sum(map(len, index.splits.values()))


def test_splits_and_lists_of_the_pairs(bupt_root):
    index = bupt_lists.read_index(bupt_root, auxiliary=True)
    identities = {
        split: {int(tracklet.identity) for tracklet in rows} for split, rows in index.splits.items()
    }
    assert identities == {
        "train": set(range(1, 7)),
        "test": set(range(7, 13)),
        "auxiliary": set(range(13, 19)),
    }
    for identity in identities["train"]:
        own = [t for t in index.splits["train"] if t.identity == str(identity)]
        assert len({tracklet.camera for tracklet in own}) >= 2
    counts = index.counts["test"]
    assert counts["visible_gallery"] == counts["infrared_gallery"]
    assert (counts["visible_queries"], counts["infrared_queries"]) == (4, 2)
    assert all(tracklet.gallery for tracklet in index.splits["test"])
    assert index.counts["auxiliary"] == {"pairs": 6, "identities": 6}


def test_skeletons_of_pairs_are_in_a_tree_by_the_file_names(bupt_root):
    index = bupt_lists.read_index(bupt_root, auxiliary=True)
    keys = {
        name.removeprefix("DATA/").removesuffix(".jpg")
        for rows in index.splits.values()
        for tracklet in rows
        for name in tracklet.frames
    }
    skeletons = skeletons_of(bupt_root)
    assert set(skeletons) < keys
    assert len(skeletons) > 0.93 * len(keys)


def test_the_people_are_the_same_in_both_layouts():
    studio = dataclasses.replace(TINY, difficulty=0.0, skeleton_variation=0.0)

    def colors(planned):
        """The colors of each training identity's torso."""
        means = {}
        for tracklet in planned:
            if tracklet.split == "train" and tracklet.modality == VISIBLE:
                drawn = generate.draw_tracklet(studio, 3, tracklet)
                torso = drawn.frames[:, 24:45, 18:30].astype(float)
                means.setdefault(tracklet.identity, torso.mean(axis=(0, 1, 2)))
        return np.array([means[identity] for identity in range(1, 7)])

    one = colors(plan.plan(studio, seed=3))
    two = colors(plan.plan_pairs(studio, seed=3))
    distances = np.abs(one[:, None] - two).sum(axis=-1)
    assert np.diag(distances).mean() < 0.3 * distances.mean()


def test_pairs_do_not_depend_on_the_number_of_processes(tmp_path):
    for name, processes in (("one", 1), ("two", 2)):
        generate.generate(tmp_path / name, SPECK, seed=1, processes=processes, layout="bupt_campus")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_one_layout_is_not_taken_for_another(root, bupt_root):
    with pytest.raises(FileExistsError, match="seed, config or layout"):
        generate.generate(bupt_root, "tiny", seed=3)
    with pytest.raises(FileExistsError):
        generate.generate(root, "tiny", seed=3, layout="bupt_campus")


def test_the_pixels_of_the_hitsz_vcm_layout_have_not_changed(root):
    """If a change is intended, raise VERSION and update this list."""
    assert generate.VERSION == 2
    content = (root / "generator.json").read_text()
    assert "layout" not in content  # datasets drawn before there were layouts are still recognized
    names = ["Train/0001/rgb", "Test/0007/ir"]
    frames = [min((root / name).rglob("*.jpg")) for name in names]
    means = [decode(root, frame.relative_to(root)).mean() for frame in frames]
    np.testing.assert_allclose(means, [108.66, 79.90], atol=0.1)


def test_the_contact_sheet_shows_pairs(bupt_root, tmp_path):
    tracklets = bupt_lists.read_index(bupt_root).splits["train"]
    contact_sheet.contact_sheet(bupt_root, tracklets, tmp_path / "sheet.png", identities=1)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    height, width = TINY.height, TINY.width
    assert sheet.shape == (4 * height + 4, 2 * (6 * width + 4), 3)
    visible, infrared = sheet[height : 2 * height], sheet[3 * height : 4 * height]
    assert np.ptp(visible[:, :width].astype(int), axis=-1).max() > 30
    assert np.ptp(infrared[:, :width].astype(int), axis=-1).max() <= 2
