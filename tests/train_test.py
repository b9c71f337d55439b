"""Training end to end: resuming, devices, what is written, and what is refused."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from star_jax import checkpoint, parallel, train
from star_jax.evaluation.embed import embed_split, evaluate_checkpoint, restore_network
from star_jax.models import build_model
from star_jax.steps import abstract_state

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny.packed_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def whole_run(dataset, tmp_path_factory):
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole_run")
    train.train(tiny.config(dataset), workdir)
    return workdir


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(workdir):
    """What must not change between runs, that is, all but the speed."""
    return [
        {name: value for name, value in row.items() if name != "frames_per_second"}
        for row in rows(workdir)
    ]


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


class Killed(Exception):
    pass


@contextlib.contextmanager
def killed_after(monkeypatch, num_batches):
    """Makes the loader fail after some batches, as if the process died there."""
    loader = train.train_batches

    def dying_loader(*args, **kwargs):
        for number, batch in enumerate(loader(*args, **kwargs)):
            if number == num_batches:
                raise Killed
            yield batch

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "train_batches", dying_loader)
        yield


def test_a_run_leaves_everything_that_it_should(whole_run, dataset):
    table = rows(whole_run)
    assert [row["step"] for row in table] == list(range(1, 13))
    for name in ("identity", "triplet", "frame_identity", "disturbed_identity", "defense"):
        assert all(np.isfinite(row[f"loss/{name}"]) for row in table)
    assert table[-1]["frames_per_second"] > 0
    assert table[-1]["learning_rate"] == pytest.approx(0.1 * table[5]["learning_rate"])
    assert saved_steps(whole_run) == [9, 12]
    config = json.loads((whole_run / "config.json").read_text())
    assert config["data"]["dir"] == str(dataset) and config["optim"]["epochs"] == 12
    environment = json.loads((whole_run / "run.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert list((whole_run / "tensorboard").iterdir())


@pytest.mark.parametrize("num_batches", [1, 4, 8])
def test_a_killed_run_continues_bit_for_bit(whole_run, dataset, tmp_path, monkeypatch, num_batches):
    with killed_after(monkeypatch, num_batches):
        train.train(tiny.config(dataset), tmp_path)
    train.train(tiny.config(dataset), tmp_path)
    assert losses(tmp_path) == losses(whole_run)


def test_a_finished_run_is_not_run_again(whole_run, dataset):
    before = rows(whole_run)
    train.train(tiny.config(dataset), whole_run)
    assert rows(whole_run) == before


@pytest.mark.slow
def test_the_command_survives_a_kill(whole_run, dataset, tmp_path):
    config = tiny.config_file(tmp_path, dataset)
    command = [sys.executable, "launch/train.py", f"--config={config}", f"--workdir={tmp_path}/run"]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and first.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 4:
            first.send_signal(signal.SIGKILL)
        time.sleep(0.02)
    assert first.wait() == -signal.SIGKILL
    subprocess.run(command, cwd=ROOT, check=True)
    assert losses(tmp_path / "run") == losses(whole_run)


def test_evaluation_writes_both_directions(whole_run):
    report, path = evaluate_checkpoint(whole_run, None)
    assert path == whole_run / "eval" / "12.json"
    assert json.loads(path.read_text()) == report
    assert report["protocol"] == "hitsz_vcm/v1" and report["step"] == 12
    for direction in ("i2v", "v2i"):
        scores = report[direction]
        assert 0 <= scores["rank1"] <= scores["rank20"] <= 100
        assert scores["queries"] == scores["gallery"] == 8


def test_dense_clips_and_any_checkpoint_can_be_evaluated(whole_run):
    report, path = evaluate_checkpoint(whole_run, 9, clips="dense")
    assert path.name == "9.json" and report["step"] == 9


def test_evaluation_during_training_is_written(dataset, tmp_path):
    config = tiny.config(dataset)
    config.eval.every_epochs = 6
    train.train(config, tmp_path)
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["12.json", "6.json"]
    assert sum("i2v/map" in row for row in rows(tmp_path)) == 2


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(dataset, tmp_path):
    config = tiny.config(dataset)
    config.optim.lr = config.optim.backbone_lr = 1e25
    with pytest.raises(FloatingPointError, match=r"step \d+: .*loss/identity.* not finite"):
        train.train(config, tmp_path)
    assert all(np.isfinite(row["loss/total"]) for row in rows(tmp_path))
    assert not saved_steps(tmp_path)


def test_an_evaluation_that_a_kill_prevented_is_made_up_for(dataset, tmp_path, monkeypatch):
    def settled(config):
        config.eval.every_epochs = 3
        return config

    def kill(*_):
        raise Killed

    monkeypatch.setattr(train, "evaluate", kill)
    with pytest.raises(Killed):
        train.train(settled(tiny.config(dataset)), tmp_path)
    assert saved_steps(tmp_path) == [3] and not (tmp_path / "eval").exists()
    monkeypatch.undo()
    train.train(settled(tiny.config(dataset)), tmp_path)
    evaluations = sorted(int(path.stem) for path in (tmp_path / "eval").iterdir())
    assert evaluations == [3, 6, 9, 12]
    assert [row["step"] for row in rows(tmp_path) if "i2v/map" in row] == evaluations
    assert len(rows(tmp_path)) == 12 + 4


def test_a_checkpoint_with_a_nonsense_config_is_refused(whole_run, monkeypatch):
    config = restore_network(whole_run, None).config
    config.model.width = 0
    monkeypatch.setattr(checkpoint, "restore_config", lambda *_: config)
    with pytest.raises(ValueError, match=r"config\.model\.width is 0: use an integer from 1 to"):
        restore_network(whole_run, None)


def test_without_config_json_the_checkpoints_tell_whose_workdir_it_is(whole_run, dataset, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    (workdir / "config.json").unlink()
    config = tiny.config(dataset)
    config.data.identities_per_batch = 2
    with pytest.raises(ValueError, match=r"checkpoints belongs to another config: data\.ident"):
        train.train(config, workdir)
    assert (workdir / "checkpoints" / "12").is_dir()


def test_the_devices_need_not_divide_the_batch_of_an_evaluation(whole_run, dataset):
    network = restore_network(whole_run, None)
    expected = embed_split(*network[1:])
    network.config.eval.batch_size = 3  # for 8 devices
    np.testing.assert_allclose(embed_split(*network[1:]), expected, rtol=1e-5, atol=1e-6)


def test_a_workdir_of_another_config_is_refused(whole_run, dataset):
    config = tiny.config(dataset)
    config.optim.lr = 0.001
    with pytest.raises(ValueError, match=r"optim\.lr was 0\.05, now 0\.001"):
        train.train(config, whole_run)


def test_a_checkpoint_of_another_architecture_is_refused(whole_run, dataset):
    config = tiny.config(dataset)
    config.model.width = 8
    state = abstract_state(config, build_model(config.model), 1, parallel.make_mesh())
    with (
        checkpoint.open_manager(whole_run, 2) as manager,
        pytest.raises(ValueError, match=r"another architecture: .*backbone.* is .*, not"),
    ):
        checkpoint.restore_state(manager, state)


def test_a_wrong_number_of_identities_is_refused(dataset, tmp_path):
    config = tiny.config(dataset)
    config.model.num_identities = 7
    with pytest.raises(ValueError, match=r"--config\.model\.num_identities=6"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_devices_cannot_share_is_refused(dataset, tmp_path):
    config = tiny.config(dataset)
    config.data.identities_per_batch = 3
    with pytest.raises(
        ValueError, match=r"8 devices cannot share 6 pairs .* use 1, 2, 3, 6 devices"
    ):
        train.train(config, tmp_path / "run")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run here"):
        evaluate_checkpoint(tmp_path, None)


def test_a_missing_checkpoint_is_named(whole_run):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 5 \(there are: 9, 12\)"):
        evaluate_checkpoint(whole_run, 5)
