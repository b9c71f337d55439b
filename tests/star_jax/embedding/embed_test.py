"""From videos to embeddings and search results, and the files in between."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.datasets import folder
from data_pipelines.errors import InputError
from data_pipelines.records.dataset import open_dataset
from data_pipelines.skeletons.corruption import parse
from data_pipelines.synthetic import videos
from data_pipelines.synthetic.plan import SIZES
from star_jax.embedding import embed, embeddings
from star_jax.evaluation.evaluate import Options, evaluate_checkpoint
from star_jax.models.pooling import GuidedPooling
from star_jax.network import load_weights
from star_jax.search.search import search

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Returns a folder with videos of two people."""
    root = tmp_path_factory.mktemp("footage") / "source"
    test = dataclasses.replace(SIZES["tiny"].test, identities=2)
    videos.write(root, dataclasses.replace(SIZES["tiny"], test=test), seed=0)
    return root


@pytest.fixture(scope="module")
def packed(footage):
    return folder.prepare(footage, footage.parent)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Returns the workdir of a run that has saved its first state."""
    return tiny.saved_run(tmp_path_factory.mktemp("run"), tiny.baseline("elsewhere"))


@pytest.fixture(scope="module")
def embedded(workdir, packed):
    return embed.embed(load_weights(workdir), split_of(packed))


def split_of(packed):
    return open_dataset(packed).split("test")


@pytest.mark.slow
def test_generated_videos_are_footage(footage, packed):
    index = open_dataset(packed).split("test").index
    assert set(index.identities) == {"0007", "0008"}
    assert set(index.modalities) == {0, 1}
    assert (index.missing_skeletons < index.num_frames).all()
    assert {path.suffix for path in footage.rglob("walk*")} == {".mp4", ".avi"}
    before = {path: path.stat().st_mtime_ns for path in footage.rglob("*")}
    test = dataclasses.replace(SIZES["tiny"].test, identities=2)
    videos.write(footage, dataclasses.replace(SIZES["tiny"], test=test), seed=0)
    assert {path: path.stat().st_mtime_ns for path in footage.rglob("*")} == before
    with pytest.raises(FileExistsError, match="choose another folder"):
        videos.write(footage, SIZES["tiny"], seed=1)


def test_each_tracklet_is_embedded(embedded, packed):
    split = split_of(packed)
    assert embedded.vectors.shape[0] == len(split)
    np.testing.assert_allclose(np.linalg.norm(embedded.vectors, axis=1), 1, rtol=1e-5)
    for name, column in vars(split.index).items():
        np.testing.assert_array_equal(getattr(embedded.index, name), column)
    assert embedded.dataset_dir == str(packed)
    made = embedded.provenance
    assert (made.step, made.dataset) == (0, split.dataset.fingerprint)
    how = (made.split, made.clips, made.clip_length, made.flip, made.corruption)
    assert how == ("test", "first", 2, False, "none")
    assert embedded.first_frames[0] == split.records[0]["frame_ids"][0]


@pytest.mark.slow
def test_any_split_can_be_embedded(workdir, tmp_path):
    dataset = open_dataset(tiny.packed_dataset(tmp_path))
    network, split = load_weights(workdir), dataset.split("train")
    train = embed.embed(network, split)
    assert train.index.identities.tolist() == split.index.identities.tolist()
    dense = embed.embed(network.with_config(**{"eval.clips": "dense"}), split)
    assert np.abs(dense.vectors - train.vectors).max() > 1e-4
    with pytest.raises(ValueError, match="split 'query'"):
        dataset.split("query")


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_in_several_ways(workdir, tmp_path):
    dataset = str(tiny.packed_dataset(tmp_path, test=(503, 504)))
    reports = {}
    for change, clips, options in (
        ({}, "first", {}),
        (
            {"options": Options(clip_length=3, rerank=True)},
            "first",
            ["clip_length", "rerank"],
        ),
        ({"clips": "linspace"}, "linspace", {}),
        ({"flip": True, "options": Options(expansion=2)}, "first", ["flip", "expansion"]),
    ):
        report, path = evaluate_checkpoint(epath.Path(workdir), None, dataset_dir=dataset, **change)
        assert report["clips"] == clips and list(report["options"]) == list(options)
        reports[path] = report
    assert len(reports) == 4 and all(path.exists() for path in reports)
    with pytest.raises(
        ValueError, match=r"config\.data\.clip_length is 2000: use an integer from 1"
    ):
        evaluate_checkpoint(
            epath.Path(workdir), None, dataset_dir=dataset, options=Options(clip_length=2000)
        )


def test_skeletons_that_are_not_used_cannot_be_corrupted(workdir):
    with pytest.raises(
        ValueError, match=r"^--corrupt=drop:0\.3: the network of .* uses no skeletons"
    ):
        evaluate_checkpoint(
            epath.Path(workdir), None, options=Options(corruption=parse("drop:0.3"))
        )


def test_skeletons_are_needed_by_a_guided_network_only(workdir, footage, tmp_path):
    split = split_of(folder.prepare(footage, tmp_path, without_skeletons=True))
    network = load_weights(workdir)
    assert np.isfinite(embed.embed(network, split).vectors).all()
    guided = network._replace(model=network.model.clone(pooling=GuidedPooling()))
    with pytest.raises(ValueError, match="guided by skeletons"):
        embed.embed(guided, split)


@pytest.mark.slow
def test_a_guided_network_is_evaluated_without_any_skeleton(footage, tmp_path):
    """As where no joint is detected; a search refuses it."""
    packed = folder.prepare(footage, tmp_path, without_skeletons=True)
    config = tiny.config(packed)
    config.eval.protocol = "cross-modality"
    workdir = epath.Path(tiny.saved_run(tmp_path / "run", config))
    report, path = evaluate_checkpoint(workdir, None)
    assert path.exists() and report["i2v"]["queries"] > 0
    arguments = [f"--workdir={workdir}", f"--source={packed}", f"--output={tmp_path / 'found'}"]
    result = subprocess.run(
        [sys.executable, "launch/search.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 1 and "no frame of test has a skeleton" in result.stderr


def test_what_is_not_packed_says_how_to_pack_it(footage):
    with pytest.raises(FileNotFoundError, match=r"launch/prepare.py --dataset=folder --source="):
        embed.open_to_embed(footage)


def test_files_hold_what_was_embedded(embedded, tmp_path):
    npz, table = embeddings.save(tmp_path / "new" / "mine.v1", embedded)
    assert (npz.name, table.name) == ("mine.v1.npz", "mine.v1.csv")
    assert sorted(path.name for path in npz.parent.iterdir()) == ["mine.v1.csv", "mine.v1.npz"]
    loaded = embeddings.load(npz)
    assert loaded.provenance == embedded.provenance
    assert loaded.dataset_dir == embedded.dataset_dir
    stored = {**vars(loaded.index), "vectors": loaded.vectors, "first": loaded.first_frames}
    written = {**vars(embedded.index), "vectors": embedded.vectors, "first": embedded.first_frames}
    for name, column in written.items():
        assert stored[name].dtype == column.dtype
        np.testing.assert_array_equal(stored[name], column)
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["first_frame"] for row in rows] == embedded.first_frames.tolist()
    assert [int(row["frames"]) for row in rows] == embedded.index.num_frames.tolist()
    assert [row["camera"] for row in rows] == embedded.index.camera_names.tolist()
    assert {row["modality"] for row in rows} == {"visible", "infrared"}


def changed(embedded, **arrays):
    """Returns the arrays of a file of embeddings, some of them changed."""
    with np.load(io.BytesIO(embeddings.as_npz(embedded, "x"))) as file:
        return {name: file[name] for name in file.files if name != "format"} | arrays


def test_files_of_another_kind_are_refused(embedded, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        embeddings.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", features=np.zeros(3))
    with pytest.raises(ValueError, match=r"other.npz: holds features"):
        embeddings.load(tmp_path / "other.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match=r"pipe\.npz: is a folder, a pipe or a device"):
        embeddings.load(tmp_path / "pipe.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"array.npy: not a readable .npz"):
        embeddings.load(tmp_path / "array.npy")
    np.savez(tmp_path / "pickled.npz", features=np.array([{}], object))
    with pytest.raises(ValueError, match=r"pickled.npz: holds features"):
        embeddings.load(tmp_path / "pickled.npz")
    count, vectors = len(embedded.vectors), embedded.vectors
    broken = {
        "not float32": changed(embedded, vectors=vectors.astype(np.float64)),
        "must have length 1": changed(embedded, vectors=vectors * np.float32(np.nan)),
        "cameras is": changed(embedded, cameras=embedded.index.cameras[1:]),
        "identities is": changed(embedded, identities=embedded.index.rows),
        "modality 2": changed(embedded, modalities=np.full(count, 2, np.int32)),
        "first_frames hold": changed(embedded, first_frames=np.full(count, "\ud800")),
        "identities hold": changed(
            embedded, identities=np.full(count, 2**31, np.uint32).view("<U1")
        ),
        "provenance, '": changed(embedded, provenance="[" * 100_000),
    }
    made = dataclasses.asdict(embedded.provenance)
    for facts in ([], {}, made | {"step": "3"}, made | {"flip": 1}, made | {"more": 1}):
        broken[f"provenance, {json.dumps(facts)[:30]!r}"[:40]] = changed(
            embedded, provenance=json.dumps(facts)
        )
    for message, wrong in broken.items():
        np.savez(tmp_path / "broken.npz", format="star_jax embeddings 5", **wrong)
        with pytest.raises(InputError, match=re.escape(message)):
            embeddings.load(tmp_path / "broken.npz")


def test_files_without_provenance_are_refused(embedded, tmp_path):
    """As versions before wrote them."""
    old = changed(embedded, dataset_fingerprint="a", split="test", step=0, config_hash="b")
    del old["provenance"]
    np.savez(tmp_path / "old.npz", format="star_jax embeddings 3", **old)
    with pytest.raises(InputError, match=r"old.npz: .* embed the dataset again"):
        embeddings.load(tmp_path / "old.npz")


def test_a_name_that_is_not_unicode_is_refused(embedded, tmp_path):
    names = np.full(len(embedded.vectors), os.fsdecode(b"\xff.jpg"))
    with pytest.raises(InputError, match="first_frames"):
        embeddings.save(tmp_path / "mine", dataclasses.replace(embedded, first_frames=names))
    assert not list(tmp_path.iterdir())


def npy_header(shape, dtype):
    file = io.BytesIO()
    facts = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()


def write_npz(path, embedded, name, member, compression):
    """Writes a file of embeddings in which one member is replaced."""
    npz, _ = embeddings.save(path.parent / "right", embedded)
    with zipfile.ZipFile(npz) as right, zipfile.ZipFile(path, "w", compression) as wrong:
        for other in right.namelist():
            wrong.writestr(other, member if other == f"{name}.npy" else right.read(other))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vectors", "identities", "cameras", "format"])
def test_a_small_file_that_unpacks_to_a_large_one_is_refused(embedded, tmp_path, name):
    path, size = tmp_path / "bomb.npz", 200_000_000
    write_npz(path, embedded, name, npy_header((size,), "|u1") + bytes(size), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"^{path}: holds .*, not the embeddings"):
            embeddings.load(path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


class Touched:
    """Unpickling makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["vectors", "identities", "provenance", "format"])
@pytest.mark.parametrize("form", ["pickle", "array", "format string"])
def test_pickles_are_not_loaded(embedded, tmp_path, name, form):
    touched = tmp_path / "touched"
    if form == "pickle":
        member = pickle.dumps(Touched(touched))
    elif form == "array":
        file = io.BytesIO()
        np.save(file, np.array([Touched(touched)] * len(embedded.vectors), object))
        member = file.getvalue()
    else:
        member = npy_header((1,), f"__import__('pathlib').Path('{touched}').touch()")
    write_npz(tmp_path / "evil.npz", embedded, name, member, zipfile.ZIP_STORED)
    with pytest.raises(InputError, match=r"evil\.npz: "):
        embeddings.load(tmp_path / "evil.npz")
    assert not touched.exists()


@pytest.mark.parametrize("dtype", ["<f4", "<U1000000", "|V0"])
@pytest.mark.parametrize("name", ["vectors", "identities", "cameras", "format"])
def test_a_header_that_claims_too_much_is_refused(embedded, tmp_path, name, dtype):
    path = tmp_path / "claim.npz"
    write_npz(path, embedded, name, npy_header((10**14, 5), dtype) + bytes(100), zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match=rf"^{path}: ") as error:
        embeddings.load(path)
    assert len(str(error.value)) < 600


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1), noise=st.binary(min_size=1, max_size=40))
def test_a_damaged_file_is_refused_or_sound(embedded, tmp_path, place, noise):
    npz, _ = embeddings.save(tmp_path / "mine", embedded)
    content = bytearray(npz.read_bytes())
    start = int(place * (len(content) - len(noise)))
    content[start : start + len(noise)] = noise
    npz.write_bytes(content)
    try:
        assert len(embeddings.load(npz).vectors) == len(embedded.vectors)
    except ValueError as error:
        assert str(error).startswith(str(npz))


@pytest.fixture
def counted(monkeypatch):
    """Returns a list that grows with each split that is embedded."""
    splits, embed_split = [], embed.embed_split

    def count(network, split, **options):
        splits.append(split.name)
        return embed_split(network, split, **options)

    monkeypatch.setattr(embed, "embed_split", count)
    return splits


@pytest.mark.slow
def test_a_dataset_is_embedded_once(workdir, packed, tmp_path, counted, capsys):
    network = load_weights(workdir)
    first = embed.embed_once(network, split_of(packed), tmp_path)
    (path,) = tmp_path.glob("embeddings-*.npz")
    assert counted == ["test"] and "reusing" not in capsys.readouterr().err
    moved = tmp_path / "moved"
    shutil.copytree(packed, moved)
    for dataset in (packed, moved):
        again = embed.embed_once(load_weights(workdir), split_of(dataset), tmp_path)
        assert again.dataset_dir == str(dataset)
        np.testing.assert_array_equal(again.vectors, first.vectors)
        assert f"reusing the embeddings in {path}" in capsys.readouterr().err
    elsewhere = embed.embed_once(network, split_of(packed), tmp_path / "new", also_in=[tmp_path])
    np.testing.assert_array_equal(elsewhere.vectors, first.vectors)
    assert counted == ["test"] and not (tmp_path / "new").exists()

    damaged = path.read_bytes()[:-100]
    provenance = dataclasses.replace(first.provenance, weights="of another network")
    other = dataclasses.replace(first, vectors=-first.vectors, provenance=provenance)
    npz, _ = embeddings.save(tmp_path / "other", other)
    capsys.readouterr()
    for times, content in enumerate([damaged, npz.read_bytes()], start=2):
        path.write_bytes(content)
        found = embed.embed_once(network, split_of(packed), tmp_path)
        assert counted == ["test"] * times
        assert f"embedding again: {path}" in capsys.readouterr().err
        np.testing.assert_array_equal(found.vectors, first.vectors)
        np.testing.assert_array_equal(embeddings.load(path).vectors, first.vectors)


@pytest.mark.slow
def test_another_network_or_dataset_is_embedded(workdir, packed, footage, tmp_path, counted):
    network, split = load_weights(workdir), split_of(packed)
    leaves, tree = jax.tree.flatten(network.variables)
    changed_weights = jax.tree.unflatten(tree, [leaves[0] + 1, *leaves[1:]])
    other = split_of(folder.prepare(footage, tmp_path / "other", every=2))
    found = [
        embed.embed_once(*case, tmp_path)
        for case in (
            (network, split),
            (network._replace(step=5), split),
            (network._replace(variables=changed_weights), split),
            (network.with_config(**{"eval.flip": True}), split),
            (network, other),
            (network.with_config(**{"eval.clips": "linspace"}), split),
        )
    ]
    assert len(list(tmp_path.glob("embeddings-*.npz"))) == len(counted) == 6
    assert [made.provenance.step for made in found] == [0, 5, 0, 0, 0, 0]
    names = ("step", "weights", "flip", "", "clips")
    for name, differing in zip(names, found[1:], strict=True):
        if name:
            with pytest.raises(InputError, match=f"compared: {name} is "):
                search(found[0], differing)
        else:
            search(found[0], differing)


@pytest.mark.slow
def test_the_commands_one_after_another(workdir, packed, tmp_path):
    def run(*command):
        options = {"cwd": ROOT, "check": True, "capture_output": True, "text": True}
        return subprocess.run([sys.executable, *command], **options)

    network = (f"--workdir={workdir}", f"--source={packed}")
    run("launch/embed.py", *network, f"--output={tmp_path}/mine")
    files = (f"--query={tmp_path}/mine.npz", f"--gallery={tmp_path}/mine.npz")
    printed = []
    for options, output in ((files, "files"), (network, "network"), (network, "network")):
        result = run("launch/search.py", *options, f"--output={tmp_path}/{output}", "--top=2")
        assert ("reusing the embeddings" in result.stderr) == (len(printed) == 2)
        lines = result.stdout.splitlines()
        printed.append(lines[:-1])
        assert lines[-1].startswith("2 of 2 queries (--max_queries) on the page ")
    assert printed[0] == printed[1] == printed[2] and len(printed[0]) == 1 + 2 + 1 + 2
    assert printed[0][-1].startswith("Rank-1 ")
    for output, endings in (("files", {".html", ".csv"}), ("network", {".html", ".csv", ".npz"})):
        assert {path.suffix for path in (tmp_path / output).iterdir()} == endings
    page = (tmp_path / "network/matches.html").read_text()
    assert f"<dt>Run</dt><dd>{workdir.name}</dd>" in page and page.count('class="strip"') == 2
