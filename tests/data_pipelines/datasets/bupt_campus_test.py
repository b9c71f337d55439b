"""BUPTCampus: reading its lists, packing it, and batches of aligned pairs."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import tempfile

import hypothesis
import numpy as np
import pytest
import simplejpeg
from hypothesis import strategies as st

from data_pipelines import loader, sampling, schema
from data_pipelines.datasets import bupt_campus, bupt_lists
from data_pipelines.datasets.findings import Findings
from data_pipelines.records.dataset import open_dataset
from data_pipelines.synthetic import generate

QUICK = hypothesis.settings(deadline=None, max_examples=60)
FILES = [*(name for names in bupt_lists.LISTS.values() for name in names), "data_paths.json"]
TRAIN = [("1", "LS3", "1", 12), ("1", "G25", "1", 5), ("10", "W4", "2", 7)]
AUXILIARY = [("2000", "TSG2", "1", 3)]
QUERY = [("7", "RGB", "CQ1", "1", 9), ("8", "IR", "TSG1", "1", 4), ("7", "IR", "CQ1", "3", 2)]
GALLERY = [("8", "IR", "TSG1", "1", 4), ("8", "RGB", "LS3", "2", 6), ("7", "RGB", "CQ1", "1", 9)]


def frames_of(pid, modality, camera, tracklet, count):
    folder = f"{pid}/{modality}/{camera}"
    return [f"{folder}/{pid}_{modality}_{camera}_{tracklet}_{n}.jpg" for n in range(1, count + 1)]


def write_index(root, train=TRAIN, auxiliary=AUXILIARY, query=QUERY, gallery=GALLERY):
    """Writes the lists and data_paths.json; pairs are (pid, camera, tracklet, frames)."""
    paths: dict = {}
    lines = {name: [] for name in FILES[:-1]}

    def add(pid, modality, camera, tracklet, count):
        cameras = paths.setdefault(pid, {}).setdefault(modality, {})
        frames = frames_of(pid, modality, camera, tracklet, count)
        cameras.setdefault(camera, {})[tracklet] = frames

    for name, pairs in (("train.txt", train), ("train_auxiliary.txt", auxiliary)):
        for pid, camera, tracklet, count in pairs:
            lines[name].append(f"{pid} RGB/IR {camera} {tracklet}")
            for modality in ("RGB", "IR"):
                add(pid, modality, camera, tracklet, count)
    for name, rows in (("query.txt", query), ("gallery.txt", gallery)):
        for row in rows:
            lines[name].append(" ".join(row[:4]))
            add(*row)
    for name, content in lines.items():
        (root / name).write_text("\n".join(content) + "\n")
    (root / "data_paths.json").write_text(json.dumps(paths))
    return root


def change_line(root, name, number, line):
    lines = (root / name).read_text().split("\n")
    lines[number - 1] = line
    (root / name).write_text("\n".join(lines))


def change_paths(root, keys, value):
    """Puts a value at a key of data_paths.json."""
    paths = json.loads((root / "data_paths.json").read_text())
    node = paths
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    (root / "data_paths.json").write_text(json.dumps(paths))


def make_tracklet(pid, modality, camera, tracklet, count, row, **kwargs):
    return schema.Tracklet(
        modality={"RGB": schema.VISIBLE, "IR": schema.INFRARED}[modality],
        identity=pid,
        camera=1 + bupt_lists.CAMERAS.index(camera),
        frames=tuple("DATA/" + path for path in frames_of(pid, modality, camera, tracklet, count)),
        row=row,
        camera_name=camera,
        **kwargs,
    )


def pairs_of(lines):
    return [
        make_tracklet(pid, modality, camera, tracklet, count, row)
        for row, (pid, camera, tracklet, count) in enumerate(lines, start=1)
        for modality in ("RGB", "IR")
    ]


def test_reads_the_lists(tmp_path):
    splits = bupt_lists.read_index(write_index(tmp_path)).splits
    assert splits["train"] == pairs_of(TRAIN)
    # Query only, then the gallery; a query's row is its line in query.txt wherever it is.
    assert splits["test"] == [
        make_tracklet(*QUERY[2], row=3, query=True, gallery=False),
        make_tracklet(*GALLERY[0], row=2, query=True, gallery=True),
        make_tracklet(*GALLERY[1], row=2, query=False, gallery=True),
        make_tracklet(*GALLERY[2], row=1, query=True, gallery=True),
    ]
    assert splits.keys() == {"train", "test"}
    assert splits["train"][0].frames[0] == "DATA/1/RGB/LS3/1_RGB_LS3_1_1.jpg"


def test_the_auxiliary_list_on_request(tmp_path):
    write_index(tmp_path)
    index = bupt_lists.read_index(tmp_path, auxiliary=True)
    assert index.splits["auxiliary"] == pairs_of(AUXILIARY)
    assert index.counts["auxiliary"] == {"pairs": 1, "identities": 1}
    everything = bupt_campus.all_tracklets(tmp_path)
    assert everything == [*pairs_of(TRAIN), *pairs_of(AUXILIARY), *index.splits["test"]]
    (tmp_path / "train_auxiliary.txt").unlink()
    assert bupt_lists.read_index(tmp_path).splits["train"] == index.splits["train"]
    assert bupt_campus.all_tracklets(tmp_path) == [*pairs_of(TRAIN), *index.splits["test"]]


def test_fake_infrared_replaces_only_the_visible_frames(tmp_path):
    plain = bupt_lists.read_index(write_index(tmp_path)).splits
    fake = bupt_lists.read_index(tmp_path, fake_infrared=True).splits
    for split, tracklets in plain.items():
        for before, after in zip(tracklets, fake[split], strict=True):
            assert dataclasses.replace(after, frames=before.frames) == before
            folder = "/FakeIR/" if before.modality == schema.VISIBLE else "/IR/"
            assert all(folder in frame for frame in after.frames)
            assert tuple(map(bupt_lists.visible_path, after.frames)) == before.frames


def test_tolerates_crlf_bom_and_trailing_blanks(tmp_path):
    plain = bupt_lists.read_index(write_index(tmp_path))
    for name in FILES:
        text = (tmp_path / name).read_text().replace("\n", "  \r\n") + "\r\n  \r\n"
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert bupt_lists.read_index(tmp_path) == plain


def test_more_visible_than_infrared_frames_are_cut_with_a_warning(tmp_path):
    plain = bupt_lists.read_index(write_index(tmp_path))
    found = Findings()
    for pid, camera, tracklet, count in (TRAIN[0], TRAIN[2]):
        frames = frames_of(pid, "RGB", camera, tracklet, count + 3)
        change_paths(tmp_path, [pid, "RGB", camera, tracklet], frames)
    assert bupt_lists.read_index(tmp_path, findings=found) == plain
    line = "train.txt:1 and 1 more: more RGB than IR frames, so the last are left out"
    assert found.wrong == [line]


def test_numbers_of_frames_that_make_no_sense_are_read_with_a_warning(tmp_path, capsys):
    plain = bupt_lists.read_index(write_index(tmp_path)).splits
    assert capsys.readouterr().err == ""
    for keys, count in ((["1", "RGB", "LS3", "1"], 12), (["7", "IR", "CQ1", "3"], 2)):
        change_paths(tmp_path, keys, frames_of(*keys, count)[::-1])
    shifted = [name.replace("_1_", "_1_10") for name in frames_of("1", "IR", "G25", "1", 5)]
    change_paths(tmp_path, ["1", "IR", "G25", "1"], shifted)
    splits = bupt_lists.read_index(tmp_path).splits
    assert splits["train"][0].frames == plain["train"][0].frames[::-1]
    assert [len(t.frames) for t in splits["train"]] == [len(t.frames) for t in plain["train"]]
    assert capsys.readouterr().err.splitlines() == [
        "train.txt:1: the numbers of the RGB frames are not in ascending order",
        "train.txt:1 and 1 more: the numbers of RGB and IR frames differ, so their times may, too",
        "query.txt:3: the numbers of the IR frames are not in ascending order",
    ]


def test_names_without_numbers_are_not_compared(tmp_path):
    write_index(tmp_path)
    for modality, stems in (("RGB", "zyxwv"), ("IR", "edcba")):
        names = [f"1/{modality}/G25/{stem}.jpg" for stem in stems]
        change_paths(tmp_path, ["1", modality, "G25", "1"], names)
    found = Findings()
    bupt_lists.read_index(tmp_path, findings=found)
    assert found.wrong == []


BROKEN_LINES = {
    "few words": (
        "train.txt",
        "1 RGB/IR LS3",
        r"train.txt:2: found '1 RGB/IR LS3', expected ident",
    ),
    "many words": ("query.txt", "7 RGB CQ1 1 1", "query.txt:2: found"),
    "blank": ("train.txt", "", "train.txt:2: found ''"),
    "one modality in training": ("train.txt", "1 RGB G25 1", r"train.txt:2: .*modality \(RGB/IR\)"),
    "pair in test": ("gallery.txt", "7 RGB/IR CQ1 1", r"gallery.txt:2: .*modality \(RGB or IR\)"),
    "identity": ("train.txt", "-1 RGB/IR G25 1", "train.txt:2: found '-1"),
    "unicode digits": ("train.txt", "\u0661 RGB/IR G25 1", "train.txt:2: found"),
    "camera": ("query.txt", "7 RGB CQ9 1", "query.txt:2: camera 'CQ9' is unknown; there are LS3,"),
    "tracklet climbs": ("query.txt", "7 RGB CQ1 ../1", "query.txt:2: found"),
    "twice": ("train.txt", "1 RGB/IR LS3 1", "train.txt:2: .* is already in train.txt:1"),
    "no such identity": (
        "train.txt",
        "99 RGB/IR LS3 1",
        r'train.txt:2: data_paths.json\["99"\] does not exist',
    ),
    "no such tracklet": (
        "gallery.txt",
        "8 IR TSG1 5",
        r'gallery.txt:2: data_paths.json\["8"\]\["IR"\]\["TSG1"\]\["5"\] does not exist',
    ),
    "both splits": (
        "query.txt",
        "1 RGB LS3 1",
        "query.txt:2: identity 1 belongs to another split, see train.txt:1",
    ),
}


@pytest.mark.parametrize(("name", "line", "message"), BROKEN_LINES.values(), ids=BROKEN_LINES)
def test_a_broken_line_is_named(tmp_path, name, line, message):
    change_line(write_index(tmp_path), name, 2, line)
    with pytest.raises(ValueError, match=message):
        bupt_lists.read_index(tmp_path)


LS3 = ["1", "RGB", "LS3", "1"]
PLACE = r'data_paths.json\["1"\]\["RGB"\]\["LS3"\]\["1"\]: '
BROKEN_PATHS = {
    "list of identities": (["1"], [], r'data_paths.json\["1"\]: found an empty list, expected an'),
    "null": (["1", "RGB"], None, r'data_paths.json\["1"\]\["RGB"\]: found null'),
    "string": (LS3, "1/RGB/LS3/1.jpg", PLACE + "found a string, expected a list of paths"),
    "object": (LS3, {"1": []}, PLACE + "found an object"),
    "no frame": (LS3, [], PLACE + "found an empty list"),
    "number": (LS3, [1], PLACE + r"found 1, expected 1/RGB/LS3/<name>.jpg"),
    "absolute": (LS3, ["/etc/passwd"], PLACE + "found '/etc/passwd'"),
    "climbs out": (LS3, ["1/RGB/LS3/../../../../x.jpg"], PLACE + "found '1/RGB/LS3/../"),
    "other camera": (LS3, ["1/RGB/G25/1.jpg"], PLACE + "found '1/RGB/G25/1.jpg'"),
    "no JPEG": (LS3, ["1/RGB/LS3/1.png"], PLACE + "found"),
    "nul": (LS3, ["1/RGB/LS3/\0.jpg"], PLACE + "found"),
    "lone surrogate": (LS3, ["1/RGB/LS3/\ud800.jpg"], PLACE + "found"),
    "frame twice": (
        LS3,
        [*frames_of(*LS3, 12), "1/RGB/LS3/1_RGB_LS3_1_7.jpg"],
        PLACE + "lists 1/RGB/LS3/1_RGB_LS3_1_7.jpg 2 times",
    ),
    "unequal pair": (
        LS3,
        ["1/RGB/LS3/1.jpg"],
        "train.txt:1: data_paths.json lists 1 RGB and 12 IR frames",
    ),
}


@pytest.mark.parametrize(("keys", "value", "message"), BROKEN_PATHS.values(), ids=BROKEN_PATHS)
def test_a_broken_entry_of_the_paths_is_named(tmp_path, keys, value, message):
    change_paths(write_index(tmp_path), keys, value)
    with pytest.raises(ValueError, match=message):
        bupt_lists.read_index(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"1": ' + b"1" * 5000 + b"}"]
)
def test_paths_that_are_not_json_are_named(tmp_path, content):
    (write_index(tmp_path) / "data_paths.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^data_paths.json: not a readable JSON file"):
        bupt_lists.read_index(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_empty_file_is_named(tmp_path, name):
    write_index(tmp_path)
    (tmp_path / name).write_text("\n")
    with pytest.raises(ValueError, match=name):
        bupt_lists.read_index(tmp_path, auxiliary=True)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        bupt_lists.read_index(tmp_path, auxiliary=True)


def test_a_wrong_root_is_named(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="the folder of BUPTCampus that holds"):
            bupt_lists.read_index(root)


@pytest.mark.parametrize("name", ["gallery.txt", "data_paths.json"])
def test_a_file_outside_the_root_is_refused(tmp_path, name):
    (tmp_path / "root").mkdir()
    root = write_index(tmp_path / "root")
    (root / name).rename(tmp_path / "elsewhere")
    (root / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{name}: leads out of the dataset's root"):
        bupt_lists.read_index(root)


CAMERA = st.sampled_from(bupt_lists.CAMERAS)
NUMBERS = st.integers(0, 99).map(str)
PAIR = st.tuples(NUMBERS, CAMERA, NUMBERS, st.integers(1, 5))
ROW = st.tuples(
    st.integers(100, 199).map(str), st.sampled_from(["RGB", "IR"]), CAMERA, NUMBERS, st.just(3)
)


@QUICK
@hypothesis.given(
    st.lists(PAIR, min_size=1, unique_by=lambda pair: pair[:3]),
    st.lists(ROW, min_size=1, max_size=9, unique_by=lambda row: row[:4]),
    st.lists(ROW, min_size=1, max_size=9, unique_by=lambda row: row[:4]),
    st.integers(0, 3),
)
def test_any_index_is_read_as_it_was_written(train, query, gallery, shared):
    gallery += [row for row in query[:shared] if row not in gallery]
    with tempfile.TemporaryDirectory() as directory:
        root = write_index(pathlib.Path(directory), train, [], query, gallery)
        splits = bupt_lists.read_index(root).splits
    assert splits["train"] == pairs_of(train)
    test = splits["test"]
    assert len({tracklet.frames for tracklet in test}) == len(test)
    found = sorted((t for t in test if t.query), key=lambda tracklet: tracklet.row)
    assert [t.frames for t in found] == [make_tracklet(*row, row=0).frames for row in query]
    found = [t for t in test if t.gallery]
    assert [t.frames for t in found] == [make_tracklet(*row, row=0).frames for row in gallery]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["1", "RGB", "IR", "LS3"]) | st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)


def read_or_named(root, name):
    """Reads an index that may be broken: then the error is one for the user and names a file.

    What is read is compared with a plain reading, and what is collected with what is raised.
    """
    found = Findings()
    with contextlib.suppress(ValueError, FileNotFoundError):
        bupt_lists.read_index(root, auxiliary=True, findings=found)
    try:
        splits = bupt_lists.read_index(root, auxiliary=True).splits
    except (ValueError, FileNotFoundError) as error:
        assert name in str(error)
        assert found.wrong[0] == str(error)
        return
    assert found.wrong == []
    for split in ("train", "auxiliary"):
        (name,) = bupt_lists.LISTS[split]
        expected = [
            (row, modality, pid, camera, *tracklet_frames(root, pid, modality, camera, tracklet))
            for row, (pid, _, camera, tracklet) in plain_lines(root, name)
            for modality in ("RGB", "IR")
        ]
        assert [plain(tracklet) for tracklet in splits[split]] == expected
    for name, listed in (
        ("query.txt", [t for t in splits["test"] if t.query]),
        ("gallery.txt", [t for t in splits["test"] if t.gallery]),
    ):
        expected = [
            (modality, pid, camera, *tracklet_frames(root, pid, modality, camera, tracklet))
            for _, (pid, modality, camera, tracklet) in plain_lines(root, name)
        ]
        if name == "query.txt":
            listed.sort(key=lambda tracklet: tracklet.row)
        assert [plain(tracklet)[1:] for tracklet in listed] == expected


def plain_lines(root, name):
    text = (root / name).read_bytes().decode("utf-8-sig").rstrip()
    return enumerate((line.split() for line in text.split("\n")), start=1)


def tracklet_frames(root, pid, modality, camera, tracklet):
    paths = json.loads((root / "data_paths.json").read_text())
    return [f"DATA/{path}" for path in paths[pid][modality][camera][tracklet]]


def plain(tracklet):
    modality = "IR" if tracklet.modality == schema.INFRARED else "RGB"
    camera = ["LS3", "G25", "CQ1", "W4", "TSG1", "TSG2"][tracklet.camera - 1]
    return (tracklet.row, modality, tracklet.identity, camera, *tracklet.frames)


@QUICK
@hypothesis.given(JSON, st.integers(0, 4))
def test_json_of_any_other_schema_is_named(value, depth):
    with tempfile.TemporaryDirectory() as directory:
        root = write_index(pathlib.Path(directory))
        if depth:
            change_paths(root, LS3[:depth], value)
        else:
            (root / "data_paths.json").write_text(json.dumps(value))
        with pytest.raises(ValueError, match=r"data_paths\.json"):
            bupt_lists.read_index(root)


@QUICK
@hypothesis.given(
    st.sampled_from(FILES[:-1]), st.binary(max_size=40) | st.text(max_size=40).map(str.encode)
)
def test_lists_of_any_content_are_read_or_named(name, content):
    with tempfile.TemporaryDirectory() as directory:
        root = write_index(pathlib.Path(directory))
        (root / name).write_bytes(content)
        read_or_named(root, name)


GOOD_LINES = st.sampled_from(
    [f"{pid} RGB/IR {camera} {tracklet}" for pid, camera, tracklet, _ in TRAIN + AUXILIARY]
    + [" ".join(row[:4]) for row in QUERY + GALLERY]
    + ["7 RGB CQ1 3", "8  IR\tTSG1 1 \r", "10 RGB/IR W4 2"]
)


@QUICK
@hypothesis.given(st.sampled_from(FILES[:-1]), st.lists(GOOD_LINES, max_size=5))
def test_lists_of_other_lines_are_read_or_named(name, lines):
    with tempfile.TemporaryDirectory() as directory:
        root = write_index(pathlib.Path(directory))
        (root / name).write_text("\n".join(lines), newline="")
        read_or_named(root, name)


WORDS = st.sampled_from(["1", "7", "8", "10", "RGB", "IR", "RGB/IR", "LS3", "CQ1", "TSG1", "2"])


@QUICK
@hypothesis.given(st.sampled_from(FILES[:-1]), st.lists(WORDS | st.text(), max_size=5))
def test_lines_of_any_words_are_read_or_named(name, words):
    with tempfile.TemporaryDirectory() as directory:
        root = write_index(pathlib.Path(directory))
        (root / name).write_bytes(" ".join(words).encode("utf-8", "surrogatepass"))
        read_or_named(root, name)


@pytest.fixture(scope="module")
def golden_root(tmp_path_factory):
    cameras = bupt_lists.CAMERAS
    train = [(str(n % 1074), cameras[n % 6], str(n), 1) for n in range(3574)]
    auxiliary = [(str(2000 + n), cameras[n % 6], "1", 1) for n in range(930)]
    gallery = [
        (str(3000 + n % 1076), modality, cameras[n % 6], str(n), 1)
        for n in range(2422)
        for modality in ("RGB", "IR")
    ]
    query = gallery[0 : 2 * 540 : 2] + gallery[1 : 2 * 536 : 2]
    return write_index(tmp_path_factory.mktemp("golden"), train, auxiliary, query, gallery)


@pytest.mark.slow
def test_an_index_of_the_published_size_has_its_counts(golden_root):
    index = bupt_lists.read_index(golden_root, auxiliary=True)
    assert index.counts == bupt_lists.GOLDEN_COUNTS
    assert [len(index.splits[split]) for split in index.splits] == [7148, 1860, 4844]


@pytest.mark.slow
def test_an_index_of_the_published_size_must_have_its_counts(golden_root, tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes((golden_root / name).read_bytes())
    change_line(tmp_path, "query.txt", 1, "3540 IR LS3 540")
    with pytest.raises(
        ValueError,
        match="visible_queries 539 instead of 540, test infrared_queries 537 instead of 536",
    ):
        bupt_lists.read_index(tmp_path)


# --- from drawn files to batches ----------------------------------------------------------------

SIZE = (96, 48)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn") / "source"
    generate.generate(root, "tiny", seed=1, processes=1, layout="bupt_campus")
    return root


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory):
    return bupt_campus.prepare(source, tmp_path_factory.mktemp("packed"), auxiliary=True)


def read_clip(source, tracklet, chosen):
    names = [tracklet.frames[frame] for frame in chosen]
    return np.stack([simplejpeg.decode_jpeg((source / name).read_bytes()) for name in names])


@pytest.mark.slow
def test_what_is_packed_is_what_was_read(source, packed):
    index = bupt_lists.read_index(source, auxiliary=True)
    assert packed.parts[-2:] == ("bupt_campus", "1.1.0")
    for split, tracklets in index.splits.items():
        columns = open_dataset(packed).split(split).index
        assert columns.identities.tolist() == [t.identity for t in tracklets]
        assert columns.rows.tolist() == [t.row for t in tracklets]
        assert columns.cameras.tolist() == [t.camera for t in tracklets]
        assert columns.camera_names.tolist() == [t.camera_name for t in tracklets]
        assert columns.queries.tolist() == [t.query for t in tracklets]
        assert columns.galleries.tolist() == [t.gallery for t in tracklets]
        identities = sorted({t.identity for t in tracklets})
        labels = [-1 if split == "test" else identities.index(t.identity) for t in tracklets]
        assert columns.labels.tolist() == labels
        for record, tracklet in zip(
            open_dataset(packed).split(split).records, tracklets, strict=True
        ):
            assert record["frame_ids"] == list(tracklet.frames)
        assert columns.missing_skeletons.sum() < 0.1 * columns.num_frames.sum()


@pytest.mark.slow
def test_the_check_finds_what_is_wrong(source, tmp_path):
    findings = bupt_campus.check(source, auxiliary=True, published=False)
    assert findings.wrong == []
    assert ("train pairs", 15, 3574) in findings.tables[0]
    shutil.copytree(source, tmp_path / "copy")
    broken = bupt_lists.read_index(source).splits["train"][3].frames[1]
    (tmp_path / "copy" / broken).write_bytes(b"no JPEG")
    wrong = bupt_campus.check(tmp_path / "copy").wrong
    assert len(wrong) == 2
    assert "train pairs 15 instead of 3574" in wrong[0]
    assert broken in wrong[1]
    change_line(tmp_path / "copy", "query.txt", 2, "x")
    assert bupt_campus.check(tmp_path / "copy").wrong[0].startswith("query.txt:2: found 'x'")


def test_the_check_reports_every_error_of_the_lists(tmp_path):
    write_index(tmp_path)
    change_line(tmp_path, "train.txt", 1, "1 RGB/IR LS9 1")
    change_line(tmp_path, "train.txt", 3, "10 RGB/IR W4 77")
    change_line(tmp_path, "gallery.txt", 2, "x")
    change_line(tmp_path, "gallery.txt", 4, "1 RGB G25 1")
    change_paths(tmp_path, ["1", "RGB", "G25", "1"], frames_of("1", "RGB", "G25", "1", 6))
    (tmp_path / "query.txt").unlink()
    findings = bupt_campus.check(tmp_path)
    for start in (
        "train.txt:1: camera 'LS9' is unknown",
        'train.txt:3: data_paths.json["10"]["RGB"]["W4"]["77"] does not exist',
        "query.txt: no such file",
        "gallery.txt:2: found 'x'",
        "gallery.txt:4: identity 1 belongs to another split, see train.txt:2",
        "train.txt:2: more RGB than IR frames",
        "the lists are not those of BUPTCampus: train pairs 1 instead of 3574",
        f"{tmp_path}: no skeletons",
    ):
        assert [line.startswith(start) for line in findings.wrong].count(True) == 1, start
    assert ("train pairs", 1, 3574) in findings.tables[0]
    assert ("frames", 10, 19) in findings.tables[1]


@pytest.mark.slow
def test_batches_are_aligned_pairs(source, packed):
    tracklets = bupt_lists.read_index(source).splits["train"]
    split = open_dataset(packed).split("train")
    clips = sampling.ClipSpec(5, SIZE, "bupt_campus")
    sizes = sampling.BatchSpec(seed=3, identities=4, tracklets=2)
    for step, batch in enumerate(loader.train_batches(split, clips, sizes, range(2, 4)), start=2):
        plan = sampling.sample_pairs(
            split.index, seed=3, step=step, identities_per_batch=4, tracklets_per_identity=2
        )
        np.testing.assert_array_equal(batch["labels"], plan.labels)
        for row, pair in enumerate(zip(plan.visible, plan.infrared, strict=True)):
            visible, infrared = (tracklets[position] for position in pair)
            moments = [name.rpartition("_")[2] for name in visible.frames]
            assert moments == [name.rpartition("_")[2] for name in infrared.frames]
            rng = sampling.row_generator(3, step, row, schema.VISIBLE)
            chosen = sampling.sorted_training_frames(len(moments), 5, rng)
            for modality, tracklet in enumerate((visible, infrared)):
                expected = read_clip(source, tracklet, chosen)
                np.testing.assert_array_equal(batch["frames"][row, :, modality], expected)


@pytest.mark.slow
def test_test_clips_are_spread_evenly(source, packed):
    tracklets = bupt_lists.read_index(source).splits["test"]
    count, spec = len(tracklets), sampling.ClipSpec(7, SIZE, "bupt_campus")
    split = open_dataset(packed).split("test")
    clips = loader.embed_batches(split, spec, range(count), batch_size=count)
    for tracklet, frames in zip(tracklets, next(clips)["frames"], strict=True):
        chosen = [int(i * (len(tracklet.frames) / 7)) for i in range(7)]
        np.testing.assert_array_equal(frames, read_clip(source, tracklet, chosen))


@pytest.mark.slow
def test_fake_infrared_is_packed_with_the_skeletons_of_the_visible_frames(source, packed, tmp_path):
    fake = bupt_campus.prepare(source, tmp_path, fake_infrared=True)
    assert fake.parts[-2:] == ("bupt_campus_fake_infrared", "1.1.0")
    for split in ("train", "test"):
        pairs = zip(
            open_dataset(packed).split(split).records,
            open_dataset(fake).split(split).records,
            strict=True,
        )
        for plain, other in pairs:
            np.testing.assert_array_equal(plain["keypoints"], other["keypoints"])
            if plain["modality"] == schema.INFRARED:
                assert plain["frames"] == other["frames"]
            else:
                frame = simplejpeg.decode_jpeg(other["frames"][0]).astype(int)
                assert np.ptp(frame, axis=-1).max() <= 2  # gray, except for JPEG's rounding
                assert plain["frames"][0] != other["frames"][0]
