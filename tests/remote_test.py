"""Workdirs and packed datasets at addresses, in a bucket that is kept in memory."""

import concurrent.futures
import json
import re
from pathlib import Path
from types import SimpleNamespace

import fsspec
import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny
import video_files
from fsspec.implementations.memory import MemoryFileSystem

from data_pipelines.datasets import folder
from data_pipelines.io import files, remote
from data_pipelines.records import copies, origin
from data_pipelines.records.dataset import open_dataset
from star_jax import network, weights
from star_jax.runs import checkpoint, run_files
from star_jax.runs.metrics import MetricsWriter
from star_jax.training import loop, preparation

ADDRESS = "gs://bucket/data/hitsz_vcm/2.1.0"


class Bucket(MemoryFileSystem):
    """Whole objects, to which nothing can be appended."""

    protocol = ("gs", "gcs")
    store: dict = {}  # noqa: RUF012  # as in the class above
    pseudo_dirs = [""]  # noqa: RUF012
    reads: list = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))

    def _open(self, path, mode="rb", **kwargs):
        if mode not in ("rb", "wb"):
            raise NotImplementedError(mode)
        if not path.startswith("/bucket/"):
            raise RuntimeError("no such bucket")
        if mode == "rb":
            self.reads.append(path.rpartition("/")[2])
        return super()._open(path, mode, **kwargs)


@pytest.fixture(autouse=True)
def bucket(monkeypatch, tmp_path):
    """An empty bucket, `gs://bucket`, and an empty cache of datasets."""
    for name in Bucket.protocol:
        fsspec.register_implementation(name, Bucket, clobber=True)
    for kept in (Bucket.store, Bucket.reads):
        kept.clear()
    copies.local_copy.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return remote.locate("gs://bucket")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return tiny.packed_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def stored(packed, bucket):
    """The packed dataset in the bucket."""
    for path in packed.iterdir():
        files.write_file(f"{ADDRESS}/{path.name}", path.read_bytes())
    return remote.locate(ADDRESS)


def change_origin(stored, **changes):
    """Changes what origin.json says, and updates its checksum."""
    content = json.loads((stored / "origin.json").read_bytes()) | changes
    content.pop("checksum")
    files.write_json(stored / "origin.json", origin.sealed(content))


def shards(folder):
    return sorted(path.name for path in folder.iterdir() if "array_record" in path.name)


def test_addresses_and_local_paths_are_distinguished(tmp_path):
    for address in ("gs://bucket", "gs://bucket/run", "gs://bucket/run.v1/checkpoints/7"):
        assert remote.is_remote(address) and remote.is_remote(remote.locate(address))
        assert str(remote.locate(address)) == address
        assert str(remote.locate(address) / "config.json") == f"{address}/config.json"
    for path in ("run", "./gs/run", "run//eval", str(tmp_path), tmp_path):
        assert not remote.is_remote(path)
        assert remote.locate(path) == Path(path)


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for function in (remote.expand, remote.local, remote.locate, remote.absolute):
        assert str(function("~/x")) == str(function(Path("~/x"))) == f"{tmp_path}/x"
        assert Path(function("a/~")) in (Path("a/~"), tmp_path / "a/~")
        with pytest.raises(ValueError, match=r"^~nobody0/x: "):
            function("~nobody0/x")
    assert remote.expand("gs://~/~") == "gs://~/~"
    files.write_file("~/a/b.txt", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_where_only_a_local_path_will_do_an_address_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for address in ("gs://bucket/x", Path("gs://bucket/x"), "s3://bucket/x"):
        with pytest.raises(ValueError, match="is a URL"):
            remote.local(address)
    with pytest.raises(ValueError, match="gs:/bucket/x"):  # what pathlib makes of an address
        files.write_file(Path("gs://bucket/x"), b"")
    video_files.write_image(tmp_path / "people/alice/visible/door/walk/1.jpg")
    for option in ({}, {"update": True}, {"overwrite": True}):
        with pytest.raises(ValueError, match="is a URL"):
            folder.prepare("people", "gs://bucket/x", without_skeletons=True, **option)
    assert [path.name for path in tmp_path.iterdir()] == ["people"]


def test_paths_in_a_config_may_begin_with_a_tilde(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "packed").symlink_to(packed)
    index = open_dataset("~/packed").split("test").index
    assert len(index.rows) == len(open_dataset("~/packed").split("test").records)
    weights.save_arrays("~/weights.safetensors", {"a": np.ones(3, np.float32)}, {})
    assert weights.load_arrays(tmp_path / "weights.safetensors")["a"].sum() == 3
    assert weights.load_arrays("~/weights.safetensors")["a"].sum() == 3
    workdir, step = network.locate_checkpoint("~/run/checkpoints/7")
    assert (str(workdir), step) == (f"{tmp_path}/run", 7)


@pytest.mark.parametrize("address", ["s3://bucket/run", "http://host/run", "file:///run"])
def test_other_addresses_are_refused(address):
    with pytest.raises(ValueError, match=r"begins with gs://"):
        remote.locate(address)


def test_a_missing_package_is_named(monkeypatch):
    def missing(protocol):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ImportError, match=r'gs://bucket/run: .*pip install -e "\.\[gcs\]"'):
        remote.locate("gs://bucket/run")
    assert remote.locate("run") == Path("run")


def test_what_the_store_raises_names_the_address():
    with pytest.raises(OSError, match=r"gs://elsewhere/a\.json: RuntimeError: no such bucket"):
        files.write_json("gs://elsewhere/a.json", {})
    with pytest.raises(OSError, match=r"gs://elsewhere/data: RuntimeError"):
        open_dataset("gs://elsewhere/data").split("train")


def test_a_checkpoint_is_named_by_its_address():
    workdir, step = network.locate_checkpoint("gs://bucket/run/checkpoints/7/")
    assert (str(workdir), step) == ("gs://bucket/run", 7)
    workdir, step = network.locate_checkpoint("gs://bucket/run/")
    assert (str(workdir), step) == ("gs://bucket/run", None)
    with pytest.raises(FileNotFoundError, match=r"^gs://bucket/run: not the folder of a run"):
        network.load_weights("gs://bucket/run/checkpoints/7")


def test_the_small_files_of_a_run(bucket):
    workdir, config = bucket / "run", tiny.config("nowhere")
    run_files.claim(workdir, config)
    run_files.claim(workdir, config)
    run_files.add_to_record(workdir, fact=1)
    assert run_files.read_json(workdir / "run.json")["fact"] == 1
    kind = {
        "step": 3,
        "protocol": "a/b",
        "split": "test",
        "clips": "first",
        "options": {},
        "dataset": {"fingerprint": "0123456789"},
    }
    report = run_files.write_report(workdir, kind, {"i2v_positions": np.arange(3)})
    assert str(report) == "gs://bucket/run/eval/3-a-b-first-01234567.json"
    assert json.loads(report.read_bytes()).items() >= kind.items()
    assert run_files.queries_path(report).is_file()
    config.seed = 9
    with pytest.raises(ValueError, match="gs://bucket/run belongs to a different config: seed"):
        run_files.claim(workdir, config)
    assert sorted(path.name for path in workdir.iterdir()) == ["config.json", "eval", "run.json"]


def test_weights_are_read_from_an_address(bucket):
    files.write_file(bucket / "weights.safetensors", safetensors.numpy.save({"a": np.arange(3.0)}))
    arrays = weights.load_arrays("gs://bucket/weights.safetensors")
    assert arrays.keys() == {"a"} and (arrays["a"] == np.arange(3)).all()
    with pytest.raises(FileNotFoundError, match="no weights at gs://bucket/none"):
        weights.load_arrays("gs://bucket/none.safetensors")


def test_a_network_is_exported_to_an_address(bucket):
    path, config = "gs://bucket/run/export/7.safetensors", tiny.config("nowhere")
    weights.save_archive(path, config=config, variables={"a": {"b": np.arange(3.0)}}, step=7)
    assert [file.name for file in (bucket / "run" / "export").iterdir()] == ["7.safetensors"]
    assert remote.locate(path).stat().length == len(remote.locate(path).read_bytes())
    found = weights.load_archive(path)
    assert found.step == 7 and (found.variables["a"]["b"] == np.arange(3)).all()


def test_compiled_programs_are_kept_beside_the_run(bucket):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_enable_xla_caches")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        with preparation.compiled_programs_kept(bucket / "run") as there_before:
            assert not there_before
            assert jax.config.jax_compilation_cache_dir == "gs://bucket/run/compiled"
            assert jax.config.jax_persistent_cache_enable_xla_caches == "none"
        assert jax.config.jax_compilation_cache_dir is None
        files.write_file(bucket / "run" / "compiled" / "step-cache", b"program")
        with preparation.compiled_programs_kept(bucket / "run") as there_before:
            assert there_before
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def steps_at(workdir):
    lines = (workdir / "metrics.jsonl").read_bytes().decode().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_rows_come_with_each_upload_and_at_the_end(bucket):
    workdir = bucket / "run"
    writer = MetricsWriter(workdir)
    writer.write(1, {"loss": 1.0})
    assert not workdir.exists()
    writer.upload()
    writer.write(2, {"loss": 1.0})
    assert steps_at(workdir) == [1]
    with pytest.raises(KeyError), writer:
        writer.write(3, {"loss": 1.0})
        raise KeyError
    assert steps_at(workdir) == [1, 2, 3]
    (events,) = (workdir / "tensorboard").iterdir()
    assert events.read_bytes()
    assert not writer._folder.exists()


def test_a_run_that_was_killed_resumes_with_its_rows(bucket):
    workdir = bucket / "run"
    killed = MetricsWriter(workdir)
    for step in range(1, 6):
        killed.write(step, {"loss": 1.0})
        if step == 4:
            killed.upload()
    with MetricsWriter(workdir, resume_step=3) as writer:
        assert steps_at(workdir) == [1, 2, 3]
        writer.write(4, {"loss": 1.0})
    assert steps_at(workdir) == [1, 2, 3, 4]


def test_a_strange_row_is_named_by_its_address(bucket):
    files.write_file(bucket / "run" / "metrics.jsonl", b'{"step": 1}\n{}\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"^gs://bucket/run/metrics\.jsonl, line 2"):
        MetricsWriter(bucket / "run")


def test_processes_that_do_not_write_leave_no_trace(bucket):
    with MetricsWriter(bucket / "run", enabled=False) as writer:
        writer.write(1, {"loss": 1.0})
        writer.upload()
    assert not Bucket.store


def test_a_damaged_checkpoint_is_renamed(bucket):
    directory = bucket / "run" / "checkpoints"
    for name in ("2/config/metadata", "2/d/0", "1/d/0", "2.damaged/old"):
        files.write_file(directory / name, name.encode())
    reloaded = []
    manager = SimpleNamespace(directory=directory, reload=lambda: reloaded.append(True))
    checkpoint._rename_damaged(manager, [2])
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["1", "2.damaged", "2.damaged.2"]
    assert (directory / "2.damaged.2" / "d" / "0").read_bytes() == b"2/d/0"
    assert [path.name for path in (directory / "2.damaged").iterdir()] == ["old"]
    assert reloaded


def test_a_dataset_at_an_address_is_read_from_a_copy(packed, stored):
    for split in ("train", "test"):
        index, expected = (
            open_dataset(ADDRESS).split(split).index,
            open_dataset(packed).split(split).index,
        )
        for name, column in vars(expected).items():
            np.testing.assert_array_equal(getattr(index, name), column)
        rows, expected = (
            open_dataset(ADDRESS).split(split).records,
            open_dataset(packed).split(split).records,
        )
        assert len(rows) == len(expected)
        for row, wanted in zip(rows, expected, strict=True):
            assert row["frames"] == wanted["frames"] and row["frame_ids"] == wanted["frame_ids"]
    copy = copies.local_copy(ADDRESS)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in packed.iterdir()
    }
    assert Bucket.reads.count(shards(packed)[0]) == 1


def test_a_copy_is_used_again_until_the_dataset_changes(packed, stored):
    copy = copies.local_copy(ADDRESS)
    copies.local_copy.cache_clear()
    Bucket.reads.clear()
    assert copies.local_copy(ADDRESS) == copy
    assert not any("array_record" in name for name in Bucket.reads)
    copies.local_copy.cache_clear()
    change_origin(stored, packed="later")
    assert copies.local_copy(ADDRESS) != copy
    assert copy.is_dir()


def test_concurrent_starts_make_one_copy(packed, stored):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # a lock keeps threads apart, too
        made = {*pool.map(lambda _: copies.local_copy.__wrapped__(ADDRESS), range(4))}
    assert len(made) == 1
    assert sorted(name for name in Bucket.reads if "array_record" in name) == shards(packed)


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[::-1]])
def test_damaged_records_are_refused_and_the_next_attempt_resumes(packed, stored, damage):
    first, last = shards(packed)
    files.write_file(stored / last, damage((packed / last).read_bytes()))
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{ADDRESS}/{last}: \d+ bytes .* checksum"):
            copies.local_copy(ADDRESS)
    assert Bucket.reads.count(first) == 1
    files.write_file(stored / last, (packed / last).read_bytes())
    assert shards(copies.local_copy(ADDRESS)) == [first, last]
    assert Bucket.reads.count(first) == 1


def test_missing_records_are_named(packed, stored):
    name = shards(packed)[0]
    (stored / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{ADDRESS}/{name}"):
        open_dataset(ADDRESS).split("train")


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc/x", "..", ".lock", "", "origin.json", "é"])
def test_names_that_lead_out_of_the_folder_are_refused(stored, tmp_path, name):
    change_origin(stored, files={name: {"bytes": 1, "sha256": "0"}})
    with pytest.raises(ValueError, match=re.escape(f"{name!r} is not a file name")):
        copies.local_copy(ADDRESS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"checksum": ""}'])
def test_a_damaged_origin_is_named(stored, content):
    files.write_file(stored / "origin.json", content)
    with pytest.raises(ValueError, match=f"^{ADDRESS}/origin.json: .*pack the dataset again"):
        copies.local_copy(ADDRESS)


@pytest.mark.parametrize("listed", [None, [1], {"a": 1}])
def test_an_origin_that_lists_nothing_is_named(stored, listed):
    change_origin(stored, files=listed)
    with pytest.raises(ValueError, match=f"^{ADDRESS}/origin.json: does not list the files"):
        copies.local_copy(ADDRESS)


@pytest.mark.parametrize("name", ["metadata.json", "features.json", "dataset_info.json"])
def test_a_changed_file_is_not_copied(packed, stored, name):
    content = (packed / name).read_bytes()
    files.write_file(stored / name, content.replace(b"2", b"3", 1))
    with pytest.raises(ValueError, match=f"^{ADDRESS}/{name}: .* checksum of origin.json"):
        open_dataset(ADDRESS).split("train")


def test_a_damaged_copy_is_named(packed, stored):
    copy = copies.local_copy(ADDRESS)
    (copy / "metadata.json").write_bytes(b"{}")
    with pytest.raises(ValueError, match=rf"^{copy}/metadata\.json: .*; remove {copy}, a copy"):
        open_dataset(ADDRESS).split("train")


def test_a_dataset_has_the_fingerprint_of_its_copies(packed, stored):
    assert open_dataset(ADDRESS).fingerprint == open_dataset(packed).fingerprint


def test_an_address_without_a_dataset_is_named():
    with pytest.raises(FileNotFoundError, match=r"^gs://bucket/none: no packed dataset here"):
        open_dataset("gs://bucket/none").split("train")


def test_a_full_disk_is_detected_before_copying(stored, monkeypatch):
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"needs 0\.0 GB, but 0\.0 GB are free.*XDG_CACHE_HOME"):
        copies.local_copy(ADDRESS)
    assert not any("array_record" in name for name in Bucket.reads)


@pytest.mark.slow
def test_a_killed_run_continues(stored, bucket, tmp_path, monkeypatch):
    """All except the arrays of the checkpoints, which TensorStore writes without fsspec."""
    opened = []

    def open_manager(workdir, keep):
        opened.append(str(workdir))
        return manager_of(tmp_path / "local", keep)

    manager_of = checkpoint.open_manager
    monkeypatch.setattr(checkpoint, "open_manager", open_manager)
    config = tiny.baseline("nowhere")
    config.data.dir = ADDRESS
    whole_loader = loop.train_batches

    def dying_loader(*args, **kwargs):
        for number, batch in enumerate(whole_loader(*args, **kwargs)):
            if number == 5:
                raise KeyError("killed")
            yield batch

    with monkeypatch.context() as patch, pytest.raises(KeyError, match="killed"):
        patch.setattr(loop, "train_batches", dying_loader)
        loop.train(config, "gs://bucket/run")
    workdir = bucket / "run"
    assert steps_at(workdir)[:3] == [1, 2, 3] and len(steps_at(workdir)) < 6
    loop.train(config, "gs://bucket/run")
    assert steps_at(workdir) == list(range(1, 13))
    assert opened == ["gs://bucket/run"] * 2
    assert {"config.json", "metrics.jsonl", "run.json"} <= {path.name for path in workdir.iterdir()}
    assert not (Path("gs:").exists() or (tmp_path / "gs:").exists())
