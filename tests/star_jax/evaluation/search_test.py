"""Search among embeddings, and the sheets that show what was found."""

import csv
import dataclasses
import io

import numpy as np
import pytest
import video_files
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.datasets import folder
from data_pipelines.io import remote
from data_pipelines.records import copies, reading
from star_jax.evaluation import match_sheet, search
from star_jax.evaluation.embeddings import Embeddings


def embeddings(n, *, seed=0, width=8, dataset="a", **changes):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    identities = rng.choice(["alice", "bob", "unknown"], n)
    made = Embeddings(
        embeddings=vectors,
        identities=identities,
        cameras=rng.choice(["door", "yard", "3"], n),
        modalities=np.array(["visible", "infrared"])[np.arange(n) % 2],
        rows=np.arange(1, n + 1, dtype=np.int32),
        num_frames=np.full(n, 12, np.int32),
        first_frames=np.array([f"{name}/{i}/1.jpg" for i, name in enumerate(identities)]),
        dataset_dir=f"/data/{dataset}",
        dataset_fingerprint=dataset,
        split="test",
        step=3,
        config_hash="abc",
    )
    return dataclasses.replace(made, **changes)


modalities = st.sampled_from(["any", "visible", "infrared"])


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    same=st.booleans(),
    query_modality=modalities,
    gallery_modality=modalities,
    top=st.integers(1, 9),
    max_queries=st.integers(1, 9),
)
def test_finds_what_trying_all_finds(
    sizes, same, query_modality, gallery_modality, top, max_queries
):
    query = embeddings(sizes[0])
    gallery = query if same else embeddings(sizes[1], seed=1, dataset="b")
    results = search.search(
        query,
        gallery,
        query_modality=query_modality,
        gallery_modality=gallery_modality,
        top=top,
        max_queries=max_queries,
    )
    chosen = [q for q in range(len(query.rows)) if query_modality in ("any", query.modalities[q])][
        :max_queries
    ]
    assert [result.query for result in results] == chosen
    for result in results:
        q = result.query
        scored = [
            (-float(query.embeddings[q] @ gallery.embeddings[g]), g)
            for g in range(len(gallery.rows))
            if gallery_modality in ("any", gallery.modalities[g]) and not (same and g == q)
        ]
        expected = sorted(scored)[:top]
        assert [match.position for match in result.matches] == [g for _, g in expected]
        for match, (score, g) in zip(result.matches, expected, strict=True):
            assert match.score == pytest.approx(-score, abs=1e-5)
            names = query.identities[q], gallery.identities[g]
            assert match.same == (None if "unknown" in names else names[0] == names[1])


def test_a_tracklet_does_not_find_itself_in_a_copy_of_its_dataset():
    query, copy = embeddings(4), embeddings(4, dataset_dir="/elsewhere")
    for result in search.search(query, copy):
        assert len(result.matches) == 3
        assert result.query not in [match.position for match in result.matches]


def test_a_tracklet_finds_its_like_in_another_dataset_or_split():
    query = embeddings(4)
    for other in (embeddings(4, dataset="b"), embeddings(4, split="train")):
        (result,) = search.search(query, other, top=1, max_queries=1)
        assert result.matches[0].position == 0


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (embeddings(3, width=5), "8 and 5 numbers"),
        (embeddings(3, config_hash="def"), "configs of the checkpoints differ"),
        (embeddings(3, step=4), "steps 3 and 4"),
    ],
)
def test_embeddings_of_different_networks_are_refused(other, reason):
    with pytest.raises(ValueError, match=f"different networks: .*{reason}"):
        search.search(embeddings(3), other)


def test_a_modality_that_nobody_has_is_named():
    visible = embeddings(2, modalities=np.array(["visible", "visible"]))
    with pytest.raises(ValueError, match=r"gallery: none of the 2 tracklets .* is infrared"):
        search.search(embeddings(2), visible, gallery_modality="infrared")


def test_the_table_and_the_file_have_the_same_content():
    query = embeddings(5)
    results = search.search(query, query, top=3)
    table = search.format_result(query, query, results[0]).splitlines()
    assert len(table) == 5 and str(query.first_frames[0]) in table[0]
    rows = list(csv.DictReader(io.StringIO(search.matches_csv(query, query, results).decode())))
    assert len(rows) == 15 and rows[0]["rank"] == "1"
    assert [row["first_frame"] for row in rows[:3]] == [line.split()[-1] for line in table[2:]]
    assert {row["same_identity"] for row in rows} <= {"yes", "no", ""}


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"]


def test_no_cell_of_the_table_is_a_formula():
    many = embeddings(
        6,
        identities=np.array(FORMULAS),
        first_frames=np.array([f"{name}/1.jpg" for name in FORMULAS]),
    )
    results = search.search(many, many, top=5)
    content = search.matches_csv(many, many, results).decode()
    rows = list(csv.reader(io.StringIO(content, newline="")))
    assert {row[7] for row in rows[1:]} == {f"'{name}" for name in FORMULAS}
    for row in rows[1:]:
        float(row[6])  # the score, which may be negative
        assert not any(cell[:1] in set("=+@\t\r") for cell in row)
        assert [n for n, cell in enumerate(row) if cell.startswith("-")] in ([], [6])
    assert any(row[6].startswith("-") for row in rows)


@pytest.fixture
def shown(tmp_path):
    """Returns embeddings of a packed dataset of three tracklets with hostile names."""
    source = tmp_path / "source"
    names = ["<script>alert(1)<", "unknown", '" onload="x']
    for name in names:
        video_files.write_image(source / name / "visible/1/\x1b[2Jwalk" / "1.jpg")
    packed = folder.prepare(source, tmp_path / "data", without_skeletons=True)
    index = [tracklet.identity for tracklet in folder.read_index(source)]
    frames = [tracklet.frames[0] for tracklet in folder.read_index(source)]
    return embeddings(
        3,
        identities=np.array(index),
        first_frames=np.array(frames),
        dataset_dir=str(packed),
        dataset_fingerprint=reading.fingerprint(packed),
    )


def sheets(shown, warnings):
    results = search.search(shown, shown)
    pictures = (match_sheet.thumbnails(shown, warnings.append),) * 2
    png = match_sheet.matches_png(shown, shown, results, pictures)
    page = match_sheet.matches_html(shown, shown, results, pictures).decode()
    return np.array(Image.open(io.BytesIO(png))).reshape(-1, 3), page


def share(pixels, color):
    return (np.abs(pixels.astype(int) - color).max(axis=1) < 12).mean()


def test_the_sheets_show_pictures_and_escape_names(shown):
    warnings = []
    pixels, page = sheets(shown, warnings)
    assert not warnings
    assert share(pixels, video_files.COLORS[0]) > 0.2
    red, green, gray = (198, 40, 40), (26, 143, 60), (154, 160, 166)
    assert share(pixels, red) > 0.003 and share(pixels, gray) > 0.003
    assert share(pixels, green) < 0.001  # the legend only
    assert page.count("data:image/jpeg;base64,") == 9
    assert "<script" not in page and 'onload="' not in page and "\x1b" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page and r"\x1b[2Jwalk/1.jpg" in page
    assert "\x1b" not in search.format_result(shown, shown, search.search(shown, shown)[0])


def test_the_picture_has_an_end(capsys):
    many = embeddings(2 * match_sheet._PNG_ROWS)
    results = search.search(many, many, top=1, max_queries=len(many.rows))
    pictures = (lambda position: None,) * 2
    heights = [
        Image.open(io.BytesIO(match_sheet.matches_png(many, many, some, pictures))).height
        for some in (results, results[: match_sheet._PNG_ROWS])
    ]
    assert heights[0] == heights[1] < 2**15
    page = match_sheet.matches_html(many, many, results, pictures).decode()
    assert page.count('class="query"') == len(many.rows)
    assert f"drawing: {len(many.rows)}/{len(many.rows)} [" in capsys.readouterr().err


def test_without_the_dataset_there_are_placeholders(shown):
    for gone in (
        dataclasses.replace(shown, dataset_dir="/nowhere"),
        dataclasses.replace(shown, dataset_fingerprint="of another"),
        dataclasses.replace(shown, split="train"),
        dataclasses.replace(shown, dataset_dir="gs://bucket/data"),
        dataclasses.replace(shown, dataset_dir="s3://bucket/data"),
    ):
        warnings = []
        pixels, page = sheets(gone, warnings)
        assert len(warnings) == 1 and warnings[0].startswith("no pictures: ")
        assert share(pixels, video_files.COLORS[0]) < 0.01
        assert page.count("no picture") == 9 and "data:image" not in page


def test_pictures_are_of_the_dataset_that_was_embedded(shown, tmp_path):
    """The other dataset has the same identities and rows, but another picture."""
    source = tmp_path / "other"
    for identity in shown.identities:
        path = source / str(identity) / "visible/1/\x1b[2Jwalk" / "1.jpg"
        video_files.write_image(path, np.full((40, 24, 3), 90, np.uint8))
    other = folder.prepare(source, tmp_path / "other_data", without_skeletons=True)
    index = reading.open_index(other, "test")
    assert index.identities.tolist() == shown.identities.tolist()
    warnings = []
    pictures = match_sheet.thumbnails(
        dataclasses.replace(shown, dataset_dir=str(other)), warnings.append
    )
    assert pictures(0) is None
    assert warnings == [f"no pictures: {other}: not the dataset that was embedded"]


def test_an_address_that_a_file_names_is_not_followed(shown, monkeypatch):
    asked = []
    monkeypatch.setattr(copies, "local_copy", asked.append)
    monkeypatch.setattr(remote, "locate", asked.append)
    warnings = []
    elsewhere = dataclasses.replace(shown, dataset_dir="gs://bucket/\x1b[2J/data")
    assert match_sheet.thumbnails(elsewhere, warnings.append)(0) is None
    assert not asked
    assert warnings[0].startswith(r"no pictures: gs://bucket/\x1b[2J/data: an address")
