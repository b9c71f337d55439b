"""The page of a search: what it shows, where its pictures come from, and what it escapes."""

import base64
import dataclasses
import pathlib
import re

import h5py
import numpy as np
import pytest
import simplejpeg
import tiny
import video_files
from browser import CHROMIUM, look_at

from data_pipelines.coco17 import JOINTS
from data_pipelines.datasets import folder
from data_pipelines.io import remote
from data_pipelines.records import copies
from data_pipelines.records.dataset import open_dataset
from data_pipelines.skeletons.sheets import evenly_spaced
from star_jax.report import pictures
from star_jax.search.page import MATCH_HEIGHT, STRIP, search_page
from star_jax.search.search import search

ANY = {"query_modality": "any", "gallery_modality": "any"}
JOINT = (12, 20)  # x, y of the left shoulder in frames of 32 x 64 pixels


def embedded(dataset, **changes):
    """Returns random embeddings of the tracklets of a packed dataset."""
    split = open_dataset(dataset).split("test")
    return tiny.embeddings(
        len(split),
        identities=split.index.identities,
        camera_names=split.index.camera_names,
        first_frames=np.array([record["frame_ids"][0] for record in split.records]),
        dataset_dir=str(dataset),
        provenance={"dataset": split.dataset.fingerprint},
        **changes,
    )


def replaced(embeddings, **changes):
    """Returns embeddings of another provenance."""
    provenance = dataclasses.replace(embeddings.provenance, **changes)
    return dataclasses.replace(embeddings, provenance=provenance)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Returns embeddings of a packed dataset without skeletons, of three hostile names."""
    root = tmp_path_factory.mktemp("hostile")
    for name in ("<script>alert(1)<", "unknown", '" onload="x'):
        video_files.write_image(root / "source" / name / "visible/1/\x1b[2Jwalk" / "1.jpg")
    return embedded(folder.prepare(root / "source", root / "data", without_skeletons=True))


def gray_of(number):
    return 20 * (number + 1)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """Returns embeddings of two tracklets of gray frames whose left shoulder is detected."""
    root = tmp_path_factory.mktemp("painted")
    source = root / "source"
    skeleton = np.zeros((17, 3), np.float32)
    skeleton[JOINTS.index("left_shoulder")] = (*JOINT, 1)
    source.mkdir()
    with h5py.File(source / "skeletons.h5", "w") as file:
        for modality in ("visible", "infrared"):
            for number in range(9):
                name = f"alice/{modality}/door/walk/{number}"
                video_files.write_image(
                    source / f"{name}.png", np.full((64, 32, 3), gray_of(number), np.uint8)
                )
                file[name] = skeleton
    dataset = folder.prepare(source, root / "data")
    index = open_dataset(dataset).split("test").index
    return embedded(dataset, modalities=index.modalities)


def page_of(query, gallery=None, *, warnings=None, count=20, **options):
    found = search(query, gallery or query, **(options.pop("kinds", ANY)))
    warn = [].append if warnings is None else warnings.append
    shown = [found.results[place] for place in evenly_spaced(len(found.results), count)]
    return search_page(found, shown, warn=warn, **options).decode()


def pictures_of(page, kind):
    """Returns the pictures of the elements of a class, in order."""
    element = {"strip": r'<img class="strip"', "match": r'<figure class="card \w+">\s*<img'}[kind]
    found = re.findall(rf'{element} src="data:image/jpeg;base64,([^"]+)"', page)
    return [simplejpeg.decode_jpeg(base64.b64decode(data)) for data in found]


def test_a_query_is_a_strip_of_frames_with_their_skeletons(painted):
    page = page_of(painted, kinds={})
    (strip,), (match,) = pictures_of(page, "strip"), pictures_of(page, "match")
    height, width = pictures.FRAME_HEIGHT, pictures.FRAME_HEIGHT // 2
    assert strip.shape == (height, STRIP * width + (STRIP - 1) * 4, 3)
    for place, number in enumerate((0, 2, 3, 5, 6, 8)):  # spread evenly over nine frames
        frame = strip[:, place * (width + 4) :][:, :width].astype(int)
        assert np.abs(frame[-20:] - gray_of(number)).max() < 12
        scale = height / 64
        x, y = (round((value + 0.5) * scale - 0.5) for value in JOINT)
        red, green, blue = frame[y, x]
        assert green > max(red, blue) + 60
        greenness = frame[..., 1] - frame[..., [0, 2]].max(axis=-1)
        greenness[y - 16 : y + 17, x - 16 : x + 17] = 0  # the blocks of the JPEG
        assert greenness.max() < 12  # nothing else is drawn
    assert match.shape == (MATCH_HEIGHT, MATCH_HEIGHT // 2, 3)
    assert np.abs(match[-20:].astype(int) - gray_of(4)).max() < 12  # the middle frame
    scale = MATCH_HEIGHT / 64
    x, y = (round((value + 0.5) * scale - 0.5) for value in JOINT)
    assert int(match[y, x, 1]) > int(match[y, x, 0]) + 60


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt install chromium)")
def test_a_browser_shows_the_page_without_errors_and_overflow(painted, hostile, tmp_path):
    for page in (page_of(painted), page_of(hostile, kinds=ANY), page_of(tiny.embeddings(40))):
        widths, console = look_at(page.encode(), tmp_path)
        assert not console and [window for _, window in widths] == [390, 1400]
        assert all(content <= window for content, window in widths), widths


def test_frames_of_other_sizes_are_not_distorted(tmp_path):
    for number, size in enumerate([(64, 32), (30, 30), (64, 16)]):
        video_files.write_image(
            tmp_path / f"source/a/visible/1/walk/{number}.png", np.full((*size, 3), 99, np.uint8)
        )
    found = embedded(folder.prepare(tmp_path / "source", tmp_path, without_skeletons=True))
    frames = pictures.open_spread_frames(found, lambda message: None)(0, 6, 160)
    assert [frame.shape for frame in frames] == [(160, 80, 3), (160, 160, 3), (160, 40, 3)]
    assert all(np.abs(frame.astype(int) - 99).max() < 4 for frame in frames)


def test_the_page_says_what_was_searched(painted):
    page = page_of(painted, run="star", command="python launch/search.py <a>", kinds={})
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", page))
    assert facts["Run"] == "star" and facts["Step"] == "3" and facts["Weights"] == "0123"
    assert facts["Dataset"] == f"folder/1.1.0, {painted.provenance.dataset[:8]}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", facts["Written"])
    assert {"Searched by"} < facts.keys()
    assert "python launch/search.py &lt;a&gt;" in page
    assert "infrared queries, visible gallery" in page
    assert "first true match at rank 1 of 1; infrared, camera door" in page
    assert '<td class="score"><b>100.0</b>' in page and "similarities-" in page  # the histogram


def test_the_rank_of_a_first_true_match_below_the_shown_ones():
    own = tiny.embeddings(40)
    found = search(own, own, top=1, **ANY)
    page = search_page(found, found.results, warn=lambda message: None).decode()
    far = [result for result in found.results if (result.first_match or 0) > 1]
    assert far
    shown = [int(rank) for rank in re.findall(r"first true match at rank (\d+) of 40", page)]
    assert shown == [result.first_match for result in found.results if result.first_match]
    unknown = (own.index.identities == "unknown").sum()
    assert page.count("identity unknown;") == unknown


def test_a_query_without_a_match_is_counted():
    own = tiny.embeddings(3, identities=np.array(["a", "a", "b"]))
    page = page_of(own)
    assert page.count("no match in the gallery; ") == 1
    assert "left out of the scores: 1 without a true match." in page
    alone = page_of(tiny.embeddings(2, identities=np.array(["a", "b"])))
    assert "No scores: no query of a known identity" in alone and "<table>" not in alone
    assert "different identity, 2 pairs" in alone


def test_many_queries_are_shown_in_part_and_scored_in_full():
    own = tiny.embeddings(300)
    page, whole = page_of(own, count=5), page_of(own, count=300)
    assert page.count("<h4>") == 5 and whole.count("<h4>") == 300
    assert "5 of 300 queries, spread evenly (--max_queries)" in page
    assert len(page) < len(whole) / 10
    scores = [re.findall(r'<td class="score"><b>([\d.]+)', each) for each in (page, whole)]
    assert scores[0] == scores[1] and len(scores[0]) == 4


def test_names_are_escaped_and_nothing_is_loaded(hostile):
    warnings = []
    page = page_of(hostile, warnings=warnings)
    assert not warnings
    strips, matches = pictures_of(page, "strip"), pictures_of(page, "match")
    assert len(strips) == 3 and len(matches) == 6
    for picture in (*strips, *matches):  # all of one color: no skeletons
        assert np.abs(picture.astype(int) - video_files.COLORS[0]).max() < 12
    assert "<script" not in page and 'onload="' not in page and "\x1b" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page and r"\x1b[2Jwalk/1.jpg" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)|https?:|url\((?!#)', page)
    assert "default-src 'none'" in page
    assert re.findall(r'<figure class="card (\w+)">', page).count("unknown") == 4


def test_without_the_dataset_there_are_placeholders(hostile):
    for gone in (
        dataclasses.replace(hostile, dataset_dir="/nowhere"),
        replaced(hostile, dataset="of another"),
        replaced(hostile, split="train"),
        dataclasses.replace(hostile, dataset_dir="gs://bucket/data"),
        dataclasses.replace(hostile, dataset_dir="s3://bucket/data"),
    ):
        warnings = []
        page = page_of(gone, warnings=warnings)
        assert len(warnings) == 1 and warnings[0].startswith("no pictures: ")
        assert page.count("no picture</div>") == 6 and "data:image" not in page


def test_queries_and_gallery_may_be_of_two_datasets(painted, hostile):
    warnings = []
    page = page_of(painted, hostile, warnings=warnings)
    assert not warnings and "Queries from" in page and "Gallery from" in page
    strips, matches = pictures_of(page, "strip"), pictures_of(page, "match")
    assert len(strips) == 2 and len(matches) == 6
    assert np.abs(matches[0].astype(int) - video_files.COLORS[0]).max() < 12
    assert np.abs(strips[0][-20:, :80].astype(int) - gray_of(0)).max() < 12


def test_pictures_are_of_the_dataset_that_was_embedded(hostile, tmp_path):
    """The other dataset has the same identities and rows, but another picture."""
    for identity in hostile.index.identities:
        path = tmp_path / "source" / str(identity) / "visible/1/\x1b[2Jwalk" / "1.jpg"
        video_files.write_image(path, np.full((40, 24, 3), 90, np.uint8))
    other = folder.prepare(tmp_path / "source", tmp_path / "data", without_skeletons=True)
    assert embedded(other).index.identities.tolist() == hostile.index.identities.tolist()
    warnings = []
    moved = dataclasses.replace(hostile, dataset_dir=str(other))
    assert pictures.open_spread_frames(moved, warnings.append) is None
    assert warnings == [f"no pictures: {other}: not the dataset that was embedded"]


def test_only_an_address_that_the_user_gives_is_followed(hostile, monkeypatch):
    asked = []

    def local_copy(address):
        asked.append(address)
        return pathlib.Path(hostile.dataset_dir)

    monkeypatch.setattr(copies, "local_copy", local_copy)
    monkeypatch.setattr(remote, "locate", lambda path: pathlib.Path("/nowhere"))
    warnings = []
    elsewhere = dataclasses.replace(hostile, dataset_dir="gs://bucket/\x1b[2J/data")
    assert pictures.open_spread_frames(elsewhere, warnings.append) is None
    assert not asked
    assert warnings[0].startswith(r"no pictures: gs://bucket/\x1b[2J/data: a URL")
    frames = pictures.open_spread_frames(elsewhere, warnings.append, follow=True)
    assert set(asked) == {elsewhere.dataset_dir} and len(frames(0, 1, 40)) == 1
