"""Training end to end: resuming, devices, what is written, and what is rejected."""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
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
import pytest
import tiny

from data_pipelines import loader
from data_pipelines.errors import InputError, OutOfMemoryError, Preempted
from data_pipelines.records.dataset import open_dataset
from star_jax.config import with_values
from star_jax.config.experiment import InitConfig
from star_jax.distributed import memory, parallel, processes
from star_jax.embedding import embed
from star_jax.embedding.embed import embed_split
from star_jax.evaluation.evaluate import evaluate_checkpoint
from star_jax.models import build_model
from star_jax.network import Network, load_weights
from star_jax.runs import checkpoint
from star_jax.state import abstract_state, initial_state
from star_jax.training import initialization, loop, preparation
from star_jax.training.preparation import continued

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny.packed_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def whole_run(dataset, tmp_path_factory):
    """Returns the workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole_run")
    loop.train(tiny.baseline(dataset), workdir, profile=2)
    return workdir


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(workdir):
    """Returns the metrics that must not change between runs: all but the speed."""
    return [
        {name: value for name, value in row.items() if name != "frames_per_second"}
        for row in rows(workdir)
    ]


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def evaluated_steps(workdir):
    return sorted(int(path.name.split("-")[0]) for path in (workdir / "eval").glob("*.json"))


class Killed(Exception):
    pass


@contextlib.contextmanager
def killed_after(monkeypatch, num_batches):
    """Makes the loader fail after some batches, as if the process was killed."""
    whole_loader = loop.train_batches

    def dying_loader(*args, **kwargs):
        for number, batch in enumerate(whole_loader(*args, **kwargs)):
            if number == num_batches:
                raise Killed
            yield batch

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "train_batches", dying_loader)
        yield


@pytest.mark.slow
def test_a_run_leaves_everything_that_it_should(whole_run, dataset):
    table = rows(whole_run)
    assert [row["step"] for row in table] == list(range(1, 13))
    for name in ("identity", "triplet", "frame_identity", "disturbed_identity", "defense"):
        assert all(np.isfinite(row[f"loss/{name}"]) for row in table)
    assert table[-1]["frames_per_second"] > 0
    assert table[-1]["learning_rate"] == pytest.approx(0.1 * table[5]["learning_rate"])
    assert saved_steps(whole_run) == [9, 12]
    assert list(whole_run.glob("profile/plugins/profile/*/*.xplane.pb"))
    config = json.loads((whole_run / "config.json").read_text())
    assert config["data"]["dir"] == str(dataset) and config["optim"]["epochs"] == 12
    environment = json.loads((whole_run / "run.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["dataset"] == {
        "dir": str(dataset),
        "fingerprint": open_dataset(dataset).fingerprint,
    }
    assert environment["seconds_in_all"] == environment["seconds"]
    assert environment["seconds"] > environment["seconds_to_first_step"]
    assert list((whole_run / "tensorboard").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("num_batches", [1, 4, 8])
def test_a_killed_run_continues_bit_for_bit(whole_run, dataset, tmp_path, monkeypatch, num_batches):
    with killed_after(monkeypatch, num_batches):
        loop.train(tiny.baseline(dataset), tmp_path)
    loop.train(tiny.baseline(dataset), tmp_path)
    assert losses(tmp_path) == losses(whole_run)


@pytest.mark.slow
@pytest.mark.parametrize("keypoints", ["relative", "pixels"])
def test_pixels_are_loaded_as_they_are_stored(dataset, tmp_path, monkeypatch, keypoints):
    """Checks training and evaluation; loader_test.py tests the loader itself."""
    asked = []

    def load(split, spec, *args, **kwargs):
        asked.append(spec.joints)
        raise Killed

    monkeypatch.setattr(loop, "train_batches", load)
    monkeypatch.setattr(loader, "embed_batches", load)
    config = tiny.baseline(dataset)
    config.model.keypoints = keypoints
    config.augment.move_keypoints = keypoints == "relative"
    with pytest.raises(Killed):
        loop.train(config, tmp_path)
    with pytest.raises(Killed):
        network = Network(0, config, build_model(config.model), None, parallel.make_mesh())
        embed_split(network, open_dataset(dataset).split("test"))
    assert asked == [keypoints, keypoints]


@pytest.mark.slow
def test_two_trainings_in_a_process_leave_it_as_it_was(dataset, tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    settings = lambda: (dict(os.environ), logging.root.level, logging.getLogger("absl").level)  # noqa: E731
    jax.config.update("jax_compilation_cache_dir", None)
    left = settings()
    config = tiny.baseline(dataset)
    config.optim.epochs = 1
    try:
        for name in ("one", "other"):
            jax.clear_caches()
            loop.train(config, tmp_path / name)
            assert jax.config.jax_compilation_cache_dir is None
            assert any((tmp_path / name / "compiled").iterdir())
        assert settings() == left
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(whole_run, dataset, caplog):
    before = rows(whole_run)
    caplog.set_level(logging.INFO, logger="star_jax")
    loop.train(tiny.baseline(dataset), whole_run)
    assert rows(whole_run) == before
    assert caplog.messages == [
        "finished: step 12 of 12; a larger --config.optim.epochs trains longer"
    ]


@pytest.mark.slow
def test_a_finished_run_may_train_longer_but_not_shorter(whole_run, dataset, tmp_path, caplog):
    config = tiny.baseline(dataset)
    config.optim.epochs = 11  # one of them after the decay
    loop.train(config, tmp_path)
    files = {name: (tmp_path / name).read_text() for name in ("config.json", "run.json")}
    config.optim.epochs = 10
    with pytest.raises(InputError, match=r"^config\.optim\.epochs is 10: .* 11 epochs; use 11 or"):
        loop.train(config, tmp_path)
    assert files == {name: (tmp_path / name).read_text() for name in files}

    caplog.set_level(logging.INFO, logger="star_jax")
    loop.train(tiny.baseline(dataset), tmp_path)
    assert losses(tmp_path) == losses(whole_run)
    assert caplog.messages[:2] == [
        "resuming from step 11 of 12",
        "config.optim.epochs was 11, now 12; training continues at the learning rate 0.005",
    ]
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["epochs"] == 12


@pytest.mark.slow
def test_the_command_survives_a_kill(whole_run, dataset, tmp_path):
    config = tiny.config_file(tmp_path, dataset, base="baseline")
    command = [sys.executable, "launch/train.py", f"--config={config}", f"--workdir={tmp_path}/run"]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and first.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 4:
            first.send_signal(signal.SIGKILL)
        time.sleep(0.02)
    assert first.wait() == -signal.SIGKILL
    subprocess.run(command, cwd=ROOT, check=True)
    assert losses(tmp_path / "run") == losses(whole_run)


@pytest.mark.slow
def test_evaluation_writes_both_directions(whole_run):
    report, path = evaluate_checkpoint(whole_run, None)
    assert path.parent == whole_run / "eval" and path.name.startswith("12-hitsz_vcm-v1-first-")
    written = json.loads(path.read_text())
    assert written.pop("environment")["packages"]["jax"] == jax.__version__
    assert (path.parent / written.pop("queries")).is_file()
    assert written == report
    assert report["protocol"] == "hitsz_vcm/v1" and report["step"] == 12
    assert (
        report["dataset"]["dir"]
        == json.loads((whole_run / "config.json").read_text())["data"]["dir"]
    )
    assert report["dataset"]["synthetic"] is False  # noise in the layout of HITSZ-VCM
    for direction in ("i2v", "v2i"):
        scores = report[direction]
        assert 0 <= scores["rank1"] <= scores["rank20"] <= 100
        assert scores["queries"] == scores["gallery"] == 8


@pytest.mark.slow
def test_dense_clips_and_any_checkpoint_can_be_evaluated(whole_run):
    first = evaluate_checkpoint(whole_run, 9)[1]
    before = first.read_text()
    report, path = evaluate_checkpoint(whole_run, 9, clips="dense")
    assert report["step"] == 9 and report["clips"] == "dense"
    assert path != first and first.read_text() == before


@pytest.mark.slow
def test_another_dataset_has_a_result_of_its_own(whole_run, tmp_path):
    own = evaluate_checkpoint(whole_run, 12)[1]
    before = own.read_text()
    other = tiny.packed_dataset(tmp_path, test=[503, 504, 505])
    report, path = evaluate_checkpoint(whole_run, 12, dataset_dir=str(other))
    assert report["i2v"]["queries"] == 6 and report["dataset"]["dir"] == str(other)
    assert path != own and own.read_text() == before


@pytest.mark.slow
def test_evaluations_during_training_are_of_identities_that_are_held_out(dataset, tmp_path):
    config = tiny.config(dataset)
    config.model.guidance, config.model.pooling = "none", "gem"  # compiles faster
    config.augment.style = False
    config.model.num_identities = None
    config.data.validation_identities = 2
    config.optim.epochs = config.eval.every_epochs = 2
    state = loop.train(config, tmp_path)
    assert state.params["classifier"]["kernel"].shape[-1] == 4
    (path,) = (tmp_path / "eval").glob("*.json")
    report = json.loads(path.read_text())
    assert report["split"] == "validation" and "-validation-" in path.name
    assert report["i2v"]["queries"] == report["i2v"]["gallery"] == 4
    assert evaluate_checkpoint(tmp_path, None, split="validation")[1] == path
    test, other = evaluate_checkpoint(tmp_path, None)
    assert test["split"] == "test" and test["i2v"]["queries"] == 8 and other != path
    config.data.validation_identities = 1
    with pytest.raises(
        ValueError, match=r"data\.validation_identities was 2, now 1; model\.num_id"
    ):
        loop.train(config, tmp_path)
    config.data.validation_identities = 3
    with pytest.raises(ValueError, match=r"leaves 3 training identities of .* use at most 2$"):
        loop.train(config, tmp_path)


@pytest.mark.slow
def test_evaluation_during_training_is_written(dataset, tmp_path):
    config = tiny.baseline(dataset)
    config.eval.every_epochs = 6
    loop.train(config, tmp_path)
    assert evaluated_steps(tmp_path) == [6, 12]
    assert sum("i2v/map" in row for row in rows(tmp_path)) == 2


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(dataset, tmp_path):
    config = tiny.baseline(dataset)
    config.optim.lr = config.optim.backbone_lr = 1e25
    with pytest.raises(FloatingPointError, match=r"step \d+: .*loss/identity.* not finite"):
        loop.train(config, tmp_path)
    assert all(np.isfinite(row["loss/total"]) for row in rows(tmp_path))
    assert not saved_steps(tmp_path)


@pytest.mark.slow
def test_an_evaluation_that_a_kill_prevented_is_made_up_for(dataset, tmp_path, monkeypatch):
    def settled(config):
        config.eval.every_epochs = 3
        return config

    def kill(*_):
        raise Killed

    def scored_steps():
        return [row["step"] for row in rows(tmp_path) if "i2v/map" in row]

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "evaluate", kill)
        loop.train(settled(tiny.baseline(dataset)), tmp_path)
    assert saved_steps(tmp_path) == [3] and not (tmp_path / "eval").exists()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "write_scores", kill)  # after the report, before the row
        loop.train(settled(tiny.baseline(dataset)), tmp_path)
    assert evaluated_steps(tmp_path) == [3] and not scored_steps()
    loop.train(settled(tiny.baseline(dataset)), tmp_path)
    assert evaluated_steps(tmp_path) == scored_steps() == [3, 6, 9, 12]
    (last,) = (tmp_path / "eval").glob("12-*.json")
    before = rows(tmp_path)
    for lost in (False, True):
        if lost:
            last.unlink()  # as if killed after the row, before the report
        loop.train(settled(tiny.baseline(dataset)), tmp_path)
        assert last.exists() and rows(tmp_path) == before
    assert len(before) == 12 + 4


def stop_at(monkeypatch, number):
    """Interrupts the run at its `number`-th check for a stop."""

    @contextlib.contextmanager
    def watch():
        asked = itertools.count(1)
        yield lambda: next(asked) == number

    monkeypatch.setattr(processes, "watch_for_stop", watch)


@pytest.mark.slow
def test_interrupted_while_it_evaluates_it_has_saved(whole_run, dataset, tmp_path, monkeypatch):
    def settled():
        config = tiny.baseline(dataset)
        config.checkpoint.every_steps = 1000
        config.eval.every_epochs = 4
        return config

    with monkeypatch.context() as patch, pytest.raises(Preempted):
        stop_at(patch, 4 + 1)  # after the first batch of the evaluation
        loop.train(settled(), tmp_path)
    assert saved_steps(tmp_path) == [4] and not (tmp_path / "eval").exists()
    loop.train(settled(), tmp_path)
    assert evaluated_steps(tmp_path) == [4, 8, 12]
    assert [row for row in losses(tmp_path) if "i2v/map" not in row] == losses(whole_run)


@pytest.mark.slow
def test_interrupted_during_the_last_save_it_finishes(dataset, tmp_path, monkeypatch):
    save, finish, saved = checkpoint.save, checkpoint.finish, []

    def saving(manager, state, *rest):
        save(manager, state, *rest)
        saved.append(int(state.step))

    def interrupted(manager):
        if saved and saved[-1] == 12:
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL  # would end the tests
            signal.raise_signal(signal.SIGTERM)
        finish(manager)

    monkeypatch.setattr(checkpoint, "save", saving)
    monkeypatch.setattr(checkpoint, "finish", interrupted)
    assert int(loop.train(tiny.baseline(dataset), tmp_path).step) == 12
    assert saved_steps(tmp_path) == [9, 12]


def test_the_speed_leaves_out_evaluations(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    config = tiny.baseline("nowhere")
    written = []
    writer = SimpleNamespace(write=lambda step, metrics: written.append(metrics))
    progress = SimpleNamespace(update=lambda *_, timed: None)
    log = loop.StepLog(config, frames_per_step=10)
    for step in range(1, 5):
        now[0] += 2.0
        log.pending = (step, {"loss/total": np.float32(1)})
        log.flush(writer, progress)
        with log.paused():
            now[0] += 100.0
    assert [row.get("frames_per_second") for row in written] == [None, 5.0, 5.0, 5.0]


@pytest.mark.slow
def test_training_starts_from_a_backbone_which_may_move_later(dataset, tmp_path, monkeypatch):
    path, arrays = tiny.backbone_file(tmp_path)

    def config_of(path):
        config = tiny.baseline(dataset)
        config.init.backbone = str(path)
        return config

    config = config_of(path)
    mesh = parallel.make_mesh(config)
    fresh = initial_state(config, build_model(config.model), 1, mesh)
    state = initialization.with_backbone(fresh, build_model(config.model), config)
    stem, stage = state.params["backbone"]["stem_infrared"], state.params["backbone"]["stage3"]
    for o, i, y, x in [(0, 0, 0, 0), (3, 2, 6, 1)]:  # PyTorch orders the axes differently
        assert stem["conv"]["kernel"][y, x, i, o] == arrays["conv1.weight"][o, i, y, x]
    shortcut = stage["block0"]["downsample_conv"]["dense"]["kernel"]
    assert shortcut[5, 11] == arrays["layer3.0.downsample.0.weight"][11, 5, 0, 0]
    for old, new in zip(
        jax.tree.leaves(fresh.params["classifier"]),
        jax.tree.leaves(state.params["classifier"]),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)

    loop.train(config, tmp_path / "whole")
    with killed_after(monkeypatch, 4):
        loop.train(config, tmp_path / "run")
    path.unlink()
    loop.train(config_of(tmp_path / "moved"), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["init"]["backbone"] == str(path)  # the origin of the parameters


def test_a_run_that_resumes_keeps_the_origin_of_its_weights(tmp_path, caplog):
    before = tiny.baseline("data").to_dict()
    before["init"] = {"backbone": "resnet.pth"}  # from before there was init.checkpoint
    manifest = checkpoint.Manifest(before, "0123", {}, {})
    config = with_values(tiny.baseline("data"), {"init.checkpoint": "runs/other"})
    found = continued(config, manifest, tmp_path / "checkpoints", "0123")
    assert found.init == InitConfig(backbone="resnet.pth", checkpoint="", other_backbone=False)
    assert config.init.checkpoint == "runs/other"
    (ignored,) = caplog.messages
    assert "config.init.checkpoint=runs/other is ignored" in ignored and str(tmp_path) in ignored
    caplog.clear()
    continued(found, manifest, tmp_path / "checkpoints", "0123")  # the same command
    assert not caplog.messages


@pytest.mark.slow
def test_another_dataset_of_as_many_identities_is_refused(whole_run, tmp_path):
    other = tiny.packed_dataset(tmp_path, train=[11, 12, 13, 14, 15, 17])
    trained_on = json.loads((whole_run / "run.json").read_text())["dataset"]
    with pytest.raises(ValueError, match="belongs to a different dataset: its fingerprint was"):
        loop.train(tiny.baseline(other), whole_run)
    assert json.loads((whole_run / "run.json").read_text())["dataset"] == trained_on


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_refused_and_may_be_made_smaller(
    dataset, tmp_path, monkeypatch
):
    random_state = lambda *a, **_: tiny.random_state(abstract_state(*a[:4]))  # noqa: E731
    monkeypatch.setattr(preparation, "starting_state", random_state)
    with monkeypatch.context() as patch, pytest.raises(OutOfMemoryError) as caught:
        patch.setattr(memory, "capacity", lambda: memory.Capacity(10**4, 1))
        loop.train(tiny.baseline(dataset), tmp_path)
    for key in ("data.identities_per_batch", "data.clip_length", "data.frame_size", "model.remat"):
        assert key in str(caught.value)
    assert not saved_steps(tmp_path)
    smaller = tiny.baseline(dataset)
    smaller.data.clip_length = 1
    monkeypatch.setattr(loop, "train_batches", lambda *_, **__: iter(()))
    loop.train(smaller, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["data"]["clip_length"] == 1


def test_an_evaluation_that_does_not_fit_says_what_to_do(monkeypatch):
    def step(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(embed, "make_embed_step", lambda *_: step)
    frames = {"frames": np.zeros((8, 1)), "keypoints": np.zeros((8, 1))}
    with pytest.raises(OutOfMemoryError, match=r"config\.eval\.batch_size"):
        network = Network(0, tiny.baseline("elsewhere"), None, None, parallel.make_mesh())
        embed.embed_clips(network, [("visible", frames)], batch_size=8, num_tracklets=1)


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ("text", "'text'"),
        ([1, 2], r"\[1, 2\]"),
        ({"optim": "text"}, "config.optim"),
        ({}, "config.seed"),
    ],
)
def test_a_checkpoint_whose_config_is_none_is_refused(tmp_path, stored, named):
    config = tiny.baseline("data")
    manifest = checkpoint.Manifest(stored, "0123", {}, {})
    with pytest.raises(InputError, match=rf"{tmp_path}.*{named}"):
        continued(config, manifest, tmp_path, "0123")
    for key in ("epochs", "lr"):
        before = config.to_dict()
        before["optim"] = {**before["optim"], key: "many"}
        manifest = checkpoint.Manifest(before, "0123", {}, {})
        with pytest.raises(InputError, match=rf"{tmp_path}.*config\.optim\.{key} is 'many'"):
            continued(config, manifest, tmp_path, "0123")


def test_a_protocol_that_cannot_score_the_dataset_is_refused_at_once(dataset, tmp_path):
    # The camera rule requires that no camera sees an identity in both modalities.
    other = tiny.packed_dataset(tmp_path / "data", cameras=(1, 2, 1, 2))
    config = tiny.baseline(other)
    config.eval.every_epochs = 12
    with pytest.raises(ValueError, match=r"hitsz_vcm/v1: camera 1 shows identity"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_not_saved(dataset, tmp_path, monkeypatch):
    def spoiled(*arguments):
        step = make_train_step(*arguments)

        def run(state, batch):
            new, metrics = step(state, batch)
            wrong = (
                new.params["classifier"]["kernel"]
                .at[0, 0]
                .set(jnp.where(new.step == 6, jnp.nan, 0.0))
            )
            return dataclasses.replace(
                new, params={**new.params, "classifier": {"kernel": wrong}}
            ), metrics

        return jax.jit(run)

    make_train_step = preparation.make_train_step
    monkeypatch.setattr(preparation, "make_train_step", spoiled)
    message = "variables/params/classifier/kernel contains .*; step 6 was not saved"
    with pytest.raises(FloatingPointError, match=message):
        loop.train(tiny.baseline(dataset), tmp_path)
    assert saved_steps(tmp_path) == [3]


@pytest.mark.slow
def test_a_checkpoint_with_a_nonsense_config_is_refused(whole_run, monkeypatch):
    config = with_values(load_weights(whole_run).config, {"model.backbone_options.width": 0})
    monkeypatch.setattr(checkpoint, "restore_config", lambda *_: config)
    with pytest.raises(
        ValueError, match=r"config\.model\.backbone_options\.width is 0: use an integer from 1 to"
    ):
        load_weights(whole_run)


@pytest.mark.slow
def test_without_config_json_the_checkpoints_hold_the_config(whole_run, dataset, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    (workdir / "config.json").unlink()
    config = tiny.baseline(dataset)
    config.optim.momentum = 0.8
    with pytest.raises(ValueError, match=r"checkpoints belongs to a different config: optim\.mom"):
        loop.train(config, workdir)
    assert (workdir / "checkpoints" / "12").is_dir()


@pytest.mark.slow
def test_the_devices_need_not_divide_the_batch_of_an_evaluation(whole_run, dataset):
    network = load_weights(whole_run)
    split = open_dataset(dataset).split("test")
    expected = embed_split(network, split)
    of_three = network.with_config(**{"eval.batch_size": 3})  # for 8 devices
    np.testing.assert_allclose(embed_split(of_three, split), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_workdir_of_another_config_is_refused(whole_run, dataset):
    config = tiny.baseline(dataset)
    config.optim.lr = 0.001
    with pytest.raises(ValueError, match=r"optim\.lr was 0\.05, now 0\.001"):
        loop.train(config, whole_run)


@pytest.mark.slow
def test_a_checkpoint_of_another_architecture_is_refused(whole_run, dataset):
    config = tiny.baseline(dataset)
    config.model.backbone_options.width = 8
    state = abstract_state(config, build_model(config.model), 1, parallel.make_mesh())
    with (
        checkpoint.open_manager(whole_run, 2) as manager,
        pytest.raises(
            ValueError, match=r"a different network or optimizer: .*backbone.* is .*, not"
        ),
    ):
        checkpoint.restore_state(manager, state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"identities_per_batch": 8},
            r"^config\.data\.identities_per_batch is 8: 6 training identities of .* use fewer",
        ),
        (
            {"tracklets_per_identity": 4},
            r"has 12 visible and 12 infrared training tracklets, and a batch takes 16 of each; low",
        ),
    ],
)
def test_data_for_less_than_a_batch_is_refused(dataset, tmp_path, changes, message):
    config = tiny.baseline(dataset)
    config.model.num_identities = None
    config.data.update(changes)
    with pytest.raises(InputError, match=message):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_wrong_number_of_identities_is_refused(dataset, tmp_path):
    config = tiny.baseline(dataset)
    config.model.num_identities = 7
    with pytest.raises(ValueError, match=r"--config\.model\.num_identities=6"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_devices_cannot_share_is_refused(dataset, tmp_path):
    config = tiny.baseline(dataset)
    config.data.identities_per_batch = 3
    with pytest.raises(
        ValueError, match=r"8 devices cannot share 6 pairs .* use 1, 2, 3, 6 devices"
    ):
        loop.train(config, tmp_path / "run")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        evaluate_checkpoint(tmp_path, None)


@pytest.mark.slow
def test_a_missing_checkpoint_is_named(whole_run):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 5 \(there are: 9, 12\)"):
        evaluate_checkpoint(whole_run, 5)
