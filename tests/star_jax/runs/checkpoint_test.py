"""Checkpoints: damaged ones, a full disk, and interrupted runs."""

import dataclasses
import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.records.dataset import open_dataset
from star_jax.distributed import parallel
from star_jax.models import build_model
from star_jax.optim import make_optimizer
from star_jax.runs import checkpoint
from star_jax.runs.manifest import read_manifest
from star_jax.state import abstract_state
from star_jax.training import loop

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def state():
    config = tiny.baseline("nowhere")
    mesh = parallel.make_mesh(config)
    return tiny.random_state(abstract_state(config, build_model(config.model), 1, mesh))


@pytest.fixture(scope="module")
def two_checkpoints(state, tmp_path_factory):
    """Returns a workdir with checkpoints of steps 1 and 2, which differ in parameters."""
    workdir = tmp_path_factory.mktemp("two_checkpoints")
    with checkpoint.open_manager(workdir, None) as manager:
        for step in (1, 2):
            count = lambda x, step=step: jax.device_put(  # noqa: E731
                np.full_like(x, step) if x.dtype == np.int32 else np.asarray(x), x.sharding
            )
            saved = dataclasses.replace(
                state,
                step=jnp.int32(step),
                params=increased(state.params, step),
                opt_state=jax.tree.map(count, state.opt_state),
            )
            checkpoint.save(manager, saved, tiny.baseline("nowhere").to_dict(), "a dataset")
        checkpoint.finish(manager)
    return workdir


def test_the_last_step_is_that_of_the_newest_folder(two_checkpoints, tmp_path):
    assert checkpoint.last_step(epath.Path(two_checkpoints)) == 2
    assert checkpoint.last_step(epath.Path(tmp_path)) == 0
    for name in ("7", "12.damaged", "30.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert checkpoint.last_step(epath.Path(tmp_path)) == 7


def test_saving_compiles_no_program_for_each_part_of_a_device(state, tmp_path, caplog):
    jax.clear_caches()
    with jax.log_compiles(), checkpoint.open_manager(tmp_path, None) as manager:
        checkpoint.save(manager, state, {}, "")
        checkpoint.finish(manager)
    compiled = [line for line in caplog.messages if "XLA compilation of" in line]
    assert compiled and not [line for line in compiled if "slice" in line]


def increased(params, number):
    """Returns the sums of all parameters and a number, without compiling anything."""
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x) + number, x.sharding), params)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def content(folder):
    """Returns the file with the arrays of an item of a checkpoint, or with the manifest."""
    files = [*folder.glob("d/*"), *folder.glob("metadata")]
    return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("item", ["variables", "optimizer", "manifest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    two_checkpoints, state, tmp_path, caplog, damage, item
):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    damage(content(workdir / "checkpoints" / "2" / item))
    with checkpoint.open_manager(workdir, None) as manager, caplog.at_level(logging.WARNING):
        restored, manifest = checkpoint.restore_state(manager, abstract(state))
        assert int(restored.step) == 1 and manifest.dataset == "a dataset"
        assert f"{workdir}/checkpoints/2 is damaged" in caplog.text
        jax.tree.map(np.testing.assert_array_equal, restored.params, increased(state.params, 1))
        # The step is reached again, and saved again.
        checkpoint.save(manager, dataclasses.replace(restored, step=jnp.int32(2)), {}, "")
        checkpoint.finish(manager)
        assert sorted(manager.all_steps()) == [1, 2]
    assert (workdir / "checkpoints" / "2.damaged").is_dir()


def test_a_second_damaged_checkpoint_of_a_step_leaves_the_first(two_checkpoints, state, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    folder = workdir / "checkpoints"
    (folder / "2.damaged").mkdir()
    (folder / "2.damaged" / "first").write_text("")
    truncate(content(folder / "2" / "variables"))
    with checkpoint.open_manager(workdir, None) as manager:
        checkpoint.restore_state(manager, abstract(state))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["1", "2.damaged", "2.damaged.2"]
    assert (folder / "2.damaged" / "first").exists()


def test_flipped_bits_are_noticed_or_harmless(two_checkpoints, state, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    folder = workdir / "checkpoints" / "2"
    expected = increased(state.params, 2)
    rng = np.random.default_rng(0)
    noticed = 0
    for path in [content(folder / "variables")] * 8 + [content(folder / "manifest")] * 4:
        intact = path.read_bytes()
        damaged = bytearray(intact)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(damaged))
        with checkpoint.open_manager(workdir, None) as manager:
            try:
                found = checkpoint.restore_variables(manager, 2, abstract(state).variables)
                jax.tree.map(np.testing.assert_array_equal, found["params"], expected)
            except checkpoint.DamagedError:
                noticed += 1
        path.write_bytes(intact)
    assert noticed >= 10


def away(path):
    """Makes a file unreadable, even for root: a link to unavailable storage."""
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("/nowhere/at/all")


def back(path):
    path.unlink()
    path.with_name("elsewhere").rename(path)


@pytest.mark.parametrize("item", ["variables", "optimizer", "manifest"])
def test_what_cannot_be_read_now_is_tried_again_and_left_alone(
    two_checkpoints, state, tmp_path, monkeypatch, item
):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    path = content(workdir / "checkpoints" / "2" / item)
    away(path)
    before = sorted(workdir.rglob("*"))
    pauses = []
    monkeypatch.setattr(checkpoint.time, "sleep", pauses.append)
    with (
        checkpoint.open_manager(workdir, None) as manager,
        pytest.raises(OSError, match=r"checkpoints/2\S*: .*No such file"),
    ):
        checkpoint.restore_state(manager, abstract(state))
    assert pauses == sorted(pauses) and 60 <= sum(pauses) <= 120
    assert sorted(workdir.rglob("*")) == before

    monkeypatch.setattr(checkpoint.time, "sleep", lambda _: back(path))
    with checkpoint.open_manager(workdir, None) as manager:
        restored, _ = checkpoint.restore_state(manager, abstract(state))
    assert int(restored.step) == 2


@pytest.mark.parametrize("place", ["front", "end"])
def test_another_optimizer_is_named_and_nothing_is_touched(two_checkpoints, state, tmp_path, place):
    config = tiny.baseline("nowhere")
    usual, more = make_optimizer(config.optim, 1), optax.identity()
    optimizer = optax.chain(*((more, usual) if place == "front" else (usual, more)))
    other = dataclasses.replace(
        abstract(state), opt_state=jax.eval_shape(optimizer.init, state.params)
    )
    before = sorted(two_checkpoints.rglob("*"))
    with (
        checkpoint.open_manager(two_checkpoints, None) as manager,
        pytest.raises(
            checkpoint.MisfitError,
            match=r"a different network or optimizer: optimizer/\S+ is .*, not",
        ),
    ):
        checkpoint.restore_state(manager, other)
    assert sorted(two_checkpoints.rglob("*")) == before


def test_a_checkpoint_without_checksums_is_refused(two_checkpoints, state, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    shutil.rmtree(workdir / "checkpoints" / "2" / "manifest")
    with (
        checkpoint.open_manager(workdir, None) as manager,
        pytest.raises(checkpoint.MisfitError, match="2: not a checkpoint of this version"),
    ):
        checkpoint.restore_state(manager, abstract(state))


@pytest.mark.parametrize("bad", [np.nan, -np.inf, -1e-6])
def test_what_is_not_finite_is_neither_saved_nor_restored(state, tmp_path, monkeypatch, bad):
    statistics = jax.tree.map(jnp.copy, state.batch_stats)
    statistics["bnneck"]["var"] = statistics["bnneck"]["var"].at[1].set(bad)
    wrong = dataclasses.replace(state, batch_stats=statistics)
    name = "batch_stats/bnneck/var contains"
    with checkpoint.open_manager(tmp_path, None) as manager:
        with pytest.raises(FloatingPointError, match=name):
            checkpoint.save(manager, wrong, {}, "")
        assert not manager.all_steps()
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "find_unusable", lambda _: None)
            checkpoint.save(manager, wrong, {}, "")
            checkpoint.finish(manager)
        with pytest.raises(ValueError, match=name):
            checkpoint.restore_variables(manager, 0, abstract(wrong).variables)


def exchange(folder):
    (folder / "1").rename(folder / "other")
    (folder / "2").rename(folder / "1")
    (folder / "other").rename(folder / "2")


def rename(folder):
    (folder / "2").rename(folder / "30")


def change_manifest(folder, **changes):
    """Changes fields of a manifest, and its checksum, as another program would write them."""
    path = folder / "manifest" / "metadata"
    content = json.loads(path.read_text())["manifest"] | changes
    content = {key: value for key, value in content.items() if value is not ...}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"manifest": content, "sha256": digest}))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("act", "found", "named"), [(exchange, 1, "2"), (rename, 2, "30")])
def test_a_step_under_another_name_is_refused(
    two_checkpoints, state, tmp_path, act, found, named, old
):
    """Earlier versions stored no step but in the optimizer, which training alone reads."""
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    if old:
        for step in ("1", "2"):
            change_manifest(workdir / "checkpoints" / step, step=...)
    act(workdir / "checkpoints")
    before = sorted(workdir.rglob("*"))
    folder = workdir / "checkpoints" / named
    with checkpoint.open_manager(workdir, None) as manager:
        acts = [lambda: checkpoint.restore_state(manager, abstract(state))]
        if not old:
            acts.append(lambda: checkpoint.restore_config(manager, int(named)))
        for restore in acts:
            with pytest.raises(checkpoint.MisfitError, match=rf"^{folder}: .* step {found}\b"):
                restore()
    assert sorted(workdir.rglob("*")) == before


def test_a_checkpoint_of_an_earlier_version_is_restored(two_checkpoints, state, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    change_manifest(workdir / "checkpoints" / "2", step=...)
    with checkpoint.open_manager(workdir, None) as manager:
        restored, manifest = checkpoint.restore_state(manager, abstract(state))
        assert int(restored.step) == 2 and manifest.step is None
        assert checkpoint.restore_config(manager, 2).seed == 0
    jax.tree.map(np.testing.assert_array_equal, restored.params, increased(state.params, 2))


@pytest.mark.parametrize(
    "changes",
    [
        *({"config": value} for value in ("text", 3, None, ["model"], ...)),
        *({"step": value} for value in ("2", 2.0, [2])),
        *({"structure": value} for value in (None, [], {"a": 1})),
        *({"checksums": value} for value in ("x", {"a": None}, ...)),
        *({"dataset": 1}, {"orbax": None}, {"later": 1}),
    ],
)
def test_a_strange_manifest_is_one_line_and_stays(two_checkpoints, state, tmp_path, changes):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints / "checkpoints/2/manifest", workdir / "checkpoints/2/manifest")
    folder = workdir / "checkpoints/2"
    change_manifest(folder, **changes)
    with pytest.raises(checkpoint.MisfitError, match=f"^{folder}: ") as raised:
        read_manifest(epath.Path(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("item", ["variables", "manifest"])
def test_a_pipe_in_a_checkpoint_is_named(two_checkpoints, state, tmp_path, item):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    path = content(workdir / "checkpoints" / "2" / item)
    path.unlink()
    os.mkfifo(path)
    with (
        checkpoint.open_manager(workdir, None) as manager,
        pytest.raises(InputError, match=f"^{path}: is a folder, a pipe or a device"),
    ):
        checkpoint.restore_config(manager, 2)


def test_only_damaged_checkpoints_are_an_error_and_stay(two_checkpoints, state, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    for step in ("1", "2"):
        truncate(content(workdir / "checkpoints" / step / "variables"))
    with (
        checkpoint.open_manager(workdir, None) as manager,
        pytest.raises(ValueError, match=r"all checkpoints are damaged \(2, 1\)"),
    ):
        checkpoint.restore_state(manager, abstract(state))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_reading_a_damaged_checkpoint_names_it(two_checkpoints, state, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    folder = workdir / "checkpoints" / "2"
    with checkpoint.open_manager(workdir, None) as manager:
        assert checkpoint.restore_config(manager, 2).seed == 0
        damage(content(folder / "variables"))
        with pytest.raises(checkpoint.DamagedError, match=f"{folder} is damaged"):
            checkpoint.restore_variables(manager, 2, abstract(state).variables)
        damage(content(folder / "manifest"))
        with pytest.raises(checkpoint.DamagedError, match=f"{folder} is damaged"):
            checkpoint.restore_config(manager, 2)
    (workdir / "checkpoints" / "7").mkdir()
    with (
        checkpoint.open_manager(workdir, None) as manager,
        pytest.raises(ValueError, match="checkpoints/7: not a checkpoint"),
    ):
        checkpoint.restore_config(manager, 7)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny.packed_dataset(tmp_path_factory.mktemp("dataset"))


def command(config, workdir):
    return [sys.executable, "launch/train.py", f"--config={config}", f"--workdir={workdir}"]


def rows(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_saves_and_resumes(dataset, tmp_path, signum):
    config = tiny.config_file(
        tmp_path,
        dataset,
        "config.optim.epochs = 30",
        "config.checkpoint.every_steps = 1000",
        base="baseline",
    )
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        command(config, workdir), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while len(rows(workdir)) < 4 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signum)
    printed = process.communicate(timeout=600)[1]
    assert process.returncode == 143, printed
    (saved,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert f"step {saved} is saved; the same command resumes" in printed
    assert saved == rows(workdir)[-1]["step"]
    again = subprocess.run(
        command(config, workdir), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"resuming from step {saved} of 30" in again.stderr
    assert [row["step"] for row in rows(workdir)] == list(range(1, 31))
    record = json.loads((workdir / "run.json").read_text())
    assert record["compilation_cache"] is True and record["seconds_to_first_step"] > 0


def test_a_full_disk_is_one_line_and_spares_the_checkpoints(state, dataset, tmp_path):
    config = tiny.config_file(tmp_path, dataset, base="baseline")
    workdir = tmp_path / "run"
    with checkpoint.open_manager(workdir, None) as manager:
        saved = dataclasses.replace(state, step=jnp.int32(9))
        checkpoint.save(
            manager, saved, tiny.baseline(dataset).to_dict(), open_dataset(dataset).fingerprint
        )
    before = content(workdir / "checkpoints" / "9" / "variables").read_bytes()
    result = subprocess.run(
        command(config, workdir),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        # No file may exceed 20 kB, which a writer sees like a full disk.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "none")},
    )
    assert result.returncode == 1, result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "a checkpoint could not be written" in error
    assert "Traceback" not in result.stderr and len(result.stderr.splitlines()) < 10, result.stderr
    assert [p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()] == ["9"]
    assert content(workdir / "checkpoints" / "9" / "variables").read_bytes() == before
    loop.train(tiny.baseline(dataset), workdir)
    assert rows(workdir)[-1]["step"] == 12


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_not_begun(state, tmp_path, monkeypatch):
    size = sum(x.nbytes for x in jax.tree.leaves((state.variables, state.opt_state)))
    with checkpoint.open_manager(tmp_path, None) as manager:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=size - 1))
            with pytest.raises(OSError, match=r"could not be written: it needs"):
                checkpoint.save(manager, state, {}, "")
        assert not list((tmp_path / "checkpoints").iterdir())
        checkpoint.save(manager, state, {}, "")
        checkpoint.finish(manager)
        assert manager.all_steps() == [0]


def test_an_unwritable_workdir_is_named(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/run"):
        loop.train(tiny.baseline(dataset), tmp_path / "file" / "run")
