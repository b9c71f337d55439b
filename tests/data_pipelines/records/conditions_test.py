"""Conditions of tracklets: from attributes.csv to the index, and what is wrong with the file."""

import csv
import dataclasses
import shutil

import hitsz_files
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines import schema
from data_pipelines.datasets import bupt_campus, folder, hitsz_vcm
from data_pipelines.records.conditions import with_conditions
from data_pipelines.records.dataset import open_dataset
from data_pipelines.synthetic import generate, plan

HEADER = "split,row,identity,modality,occluder,light,resolution,motion_blur"
TRACKLETS = {
    "train": [
        schema.Tracklet(schema.VISIBLE, "0001", 1, ("a.jpg",), 4),
        schema.Tracklet(schema.INFRARED, "0001", 1, ("b.jpg",), 4),  # of the same pair
    ]
}
ROWS = ("train,4,0001,rgb,none,1,1,0", "train,4,0001,ir,pole,0.5,1.0,0.1")
ONE_PERSON = plan.SplitConfig(2, 6, (2, 2), (2, 2), 2, 2)
SMALL = dataclasses.replace(
    plan.SIZES["tiny"],
    train=ONE_PERSON,
    test=ONE_PERSON,
    height=24,
    width=12,
    **dict.fromkeys(
        ("occluded_share", "low_light_share", "low_resolution_share", "motion_blur_share"), 0.5
    ),
)


def write(root, *rows, header=HEADER):
    (root / "attributes.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def conditions_of(root, tracklets=TRACKLETS):
    found = with_conditions(root, tracklets)
    return {split: [tracklet.conditions for tracklet in found[split]] for split in found}


def test_without_the_file_nothing_is_known(tmp_path):
    assert with_conditions(tmp_path, TRACKLETS) == TRACKLETS
    assert conditions_of(tmp_path) == {"train": [(), ()]}


def test_both_tracklets_of_a_pair_have_their_own_row(tmp_path):
    write(tmp_path, *ROWS)
    assert conditions_of(tmp_path) == {"train": [("clean",), ("occluded", "low light", "smeared")]}
    write(tmp_path, *reversed(ROWS), "test,1,0007,rgb,none,1,1,0")  # not packed
    assert conditions_of(tmp_path)["train"][0] == ("clean",)


@given(
    occluder=st.sampled_from(["none", "pole", "a, wall"]),
    light=st.sampled_from(["0", "0.999", "1", "1.0", "2"]),
    resolution=st.sampled_from(["0.3", "1", "1e0"]),
    motion_blur=st.sampled_from(["0", "0.0", "0.05"]),
    order=st.permutations(HEADER.split(",")),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_conditions_follow_from_the_values(
    tmp_path, occluder, light, resolution, motion_blur, order
):
    row = {
        **{"split": "train", "row": "4", "identity": "0001", "modality": "ir"},
        **{"occluder": occluder, "light": light, "resolution": resolution},
        "motion_blur": motion_blur,
    }
    with open(tmp_path / "attributes.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ["note", *order], restval="x")
        table.writeheader()
        table.writerows([row, row | {"modality": "rgb"}])
    expected = set()
    if occluder != "none":
        expected.add("occluded")
    if light in ("0", "0.999"):
        expected.add("low light")
    if resolution == "0.3":
        expected.add("low resolution")
    if motion_blur == "0.05":
        expected.add("smeared")
    for found in conditions_of(tmp_path)["train"]:
        assert set(found) == (expected or {"clean"}) and len(found) == len(set(found))


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (ROWS, HEADER.replace("light", "lamp"), r"the column light is missing; use split,row,"),
        (ROWS[:1], HEADER, r"no row for the train tracklet of row 4, .* modality ir \(b\.jpg\)"),
        ((*ROWS, ROWS[0]), HEADER, r"attributes\.csv:4: .*attributes\.csv:2;"),
        ([ROWS[0].replace("rgb", "thermal")], HEADER, r":2: modality is 'thermal': use rgb or ir"),
        ([ROWS[0].replace(",4,", ",four,")], HEADER, r":2: row is 'four', not a whole number"),
        ([ROWS[0].replace("1,1,0", "dim,1,0")], HEADER, r":2: light is 'dim', not a number of 0"),
        ([ROWS[0].replace("1,1,0", "1,nan,0")], HEADER, r":2: resolution is 'nan', not a number"),
        ([ROWS[0].replace("1,1,0", "1,1,-1")], HEADER, r":2: motion_blur is '-1', not a number"),
        ([ROWS[0].replace("1,1,0", "1,1")], HEADER, r":2: motion_blur is '', not a number"),
        *(
            ([ROWS[0].replace("none", word)], HEADER, rf":2: occluder is {word!r}")
            for word in ("", "nan", "NaN", "null", "N/A", "no", "False", "0", "-")
        ),
        ([ROWS[0].replace("none", "tree, tall")], HEADER, r":2: .*a cell too many"),
        (ROWS, HEADER.replace("light", "row"), r"column"),
        (['train,4,"0001'], HEADER, r": not a readable CSV file \(unexpected end of data\)"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, rows, header, message):
    write(tmp_path, *rows, header=header)
    with pytest.raises(ValueError, match=message) as error:
        conditions_of(tmp_path)
    assert "attributes.csv" in str(error.value) and "\n" not in str(error.value)


def test_none_may_have_capitals_and_a_name_any_form_of_unicode(tmp_path):
    tracklets = {"test": [schema.Tracklet(schema.VISIBLE, "Zo\u00eb", 1, ("a.jpg",), 1)]}
    for row in ("test;1;Zoe\u0308;rgb;None;1;1;0", "test;01;Zo\u00eb ;rgb; NONE ;1;1;0"):
        (tmp_path / "attributes.csv").write_text(f"{HEADER.replace(',', ';')}\n{row}\n", "utf-16")
        assert conditions_of(tmp_path, tracklets) == {"test": [("clean",)]}


def test_a_row_describes_one_tracklet(tmp_path):
    """A query and a gallery entry of BUPTCampus may have the same line numbers."""
    write(tmp_path, *ROWS)
    with pytest.raises(ValueError, match="no row for the train tracklet of row 4"):
        conditions_of(tmp_path, {"train": [TRACKLETS["train"][0]] * 2})


def drawn_conditions(root):
    """Conditions of each split as the drawing says, sorted."""
    found = {}
    with open(root / "attributes.csv", newline="") as file:
        for row in csv.DictReader(file):
            held = [
                ("occluded", row["occluder"] != "none"),
                ("low light", float(row["light"]) != 1),
                ("low resolution", float(row["resolution"]) != 1),
                ("smeared", float(row["motion_blur"]) != 0),
            ]
            names = [name for name, holds in held if holds] or ["clean"]
            facts = (int(row["identity"]), row["modality"], int(row["camera"]), int(row["frames"]))
            found.setdefault(row["split"], []).append((*facts, ";".join(names)))
    return {split: sorted(rows) for split, rows in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["hitsz_vcm", "bupt_campus"])
def test_drawn_conditions_are_packed(tmp_path, layout):
    root = tmp_path / "source"
    generate.generate(root, SMALL, seed=4, processes=1, layout=layout)
    if layout == "hitsz_vcm":
        packed = hitsz_vcm.prepare(root, tmp_path / "data")
        assert hitsz_vcm.check(root, published=False).wrong == []
    else:
        packed = bupt_campus.prepare(root, tmp_path / "data", auxiliary=True)
        assert bupt_campus.check(root, auxiliary=True, published=False).wrong == []
    drawn = drawn_conditions(root)
    assert len({row[-1] for row in drawn["test"]}) > 2
    for split, rows in drawn.items():
        index = open_dataset(packed).split(split).index
        columns = zip(
            map(int, index.identities),
            [("rgb", "ir")[modality] for modality in index.modalities],
            index.cameras.tolist(),
            index.num_frames.tolist(),
            index.conditions.tolist(),
            strict=True,
        )
        long = [row for row in rows if layout != "hitsz_vcm" or row[3] >= hitsz_vcm.MIN_FRAMES]
        assert sorted(columns) == long
        for record, joined in zip(
            open_dataset(packed).split(split).records, index.conditions, strict=True
        ):
            assert ";".join(record["conditions"]) == joined


def test_the_check_reports_the_file(tmp_path):
    root = hitsz_files.write_dataset(tmp_path / "root")
    write(root, "train,2,0007,rgb,none,bright,1,0")
    wrong = hitsz_vcm.check(root, published=False).wrong
    assert [line for line in wrong if "attributes.csv:2: light is 'bright'" in line]


def test_a_changed_file_is_another_source(tmp_path):
    root = hitsz_files.write_dataset(tmp_path / "root")
    packed = hitsz_vcm.prepare(root, tmp_path / "data")
    assert set(open_dataset(packed).split("test").index.conditions) == {""}
    tracklets = hitsz_vcm.read_index(root)
    write(
        root,
        *(
            f"{split},{t.row},{t.identity},{('rgb', 'ir')[t.modality]},none,1,1,0"
            for split in ("train", "test")
            for t in getattr(tracklets, split)
        ),
    )
    with pytest.raises(ValueError, match=r"another source \(its index differ\)"):
        hitsz_vcm.prepare(root, tmp_path / "data")


def test_a_folder_has_names_of_cameras_and_conditions(tmp_path, capsys):
    frame = hitsz_files.write_dataset(tmp_path / "other") / "0007/rgb/D1/11.jpg"
    for camera in ("door", "yard"):
        path = tmp_path / "root/alice/visible" / camera / "walk/1.jpg"
        path.parent.mkdir(parents=True)
        shutil.copyfile(frame, path)
    rows = ("test,1,alice,rgb,none,1,1,0", "test,2,alice,rgb,tree,1,1,0")
    write(tmp_path / "root", *rows)
    packed = folder.prepare(tmp_path / "root", tmp_path / "data", without_skeletons=True)
    assert "skipped" not in capsys.readouterr().err
    index = open_dataset(packed).split("test").index
    assert index.cameras.tolist() == [1, 2]
    assert index.camera_names.tolist() == ["door", "yard"]
    assert index.conditions.tolist() == ["clean", "occluded"]
    record = open_dataset(packed).split("test").records[1]
    assert (record["camera_name"], list(record["conditions"])) == ("yard", ["occluded"])


def test_a_camera_without_a_name_has_its_number():
    tracklet = schema.Tracklet(schema.VISIBLE, "1", 3, ("a.jpg",), 1)
    assert tracklet.camera_name == "3"
    assert dataclasses.replace(tracklet, camera_name="yard").camera_name == "yard"
