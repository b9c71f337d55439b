"""Files of someone else run no code: what a stored config may name, and who may allow more."""

import ast
import os
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from etils import epath
from evaluated import write_run

from data_pipelines.errors import InputError
from star_jax import Embedder, load_weights
from star_jax.config.experiment import ADDED_KEYS, KEYS
from star_jax.evaluation.evaluate import evaluate_checkpoint
from star_jax.network import restore_network
from star_jax.report.build import write_report
from star_jax.report.run import read_reports
from star_jax.runs import checkpoint, run_files
from star_jax.runs.metrics import read_rows
from star_jax.state import TrainState
from star_jax.stored import complete, read_config
from star_jax.training.initialization import with_network
from star_jax.weights import load_archive, save_archive

ROOT = Path(__file__).parents[2]
VARIABLES = {"params": {"layer": {"kernel": np.ones(3, np.float32)}}, "batch_stats": {}}
STRANGERS = {  # by hand: every place of a config that can name code
    "model.backbone": "strangers.parts:run",
    "model.guidance": "strangers.parts:run",
    "model.pooling": "strangers.parts:run",
    "optim.optimizer": "strangers.parts:run",
    "optim.schedule": "strangers.parts:run",
    "data.sampling": "strangers.parts:run",
    "eval.protocol": "strangers.parts:run",
    "augment.parts": ("normalize", "strangers.parts:run"),
    "losses.extra": (("strangers.parts:run", 1.0),),
    "model.backbone_options": {"stage_sizes": [1, [{"norm": "strangers.parts:run"}]]},
}


@pytest.fixture(autouse=True)
def strangers(tmp_path, monkeypatch):
    """A package of someone else that leaves a trace when it is imported; returns the trace."""
    trace = tmp_path / "trace"
    folder = tmp_path / "installed/strangers"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(f"open({str(trace)!r}, 'w')\n")
    (folder / "parts.py").write_text("def run(**_):\n    raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield trace
    for name in [name for name in sys.modules if name.partition(".")[0] == "strangers"]:
        del sys.modules[name]


def config_with(key=None, value=None):
    config = tiny.baseline("nowhere")
    if key:
        section, _, name = key.partition(".")
        with config.ignore_type():
            config[section][name] = value
    return config


def saved_run(workdir, config):
    """Returns the folder of a run whose checkpoint of step 7 has this config."""
    state = TrainState(jnp.int32(7), **VARIABLES, losses={}, opt_state={"count": jnp.int32(7)})
    with checkpoint.open_manager(workdir, 1) as manager:
        checkpoint.save(manager, state, config.to_dict(), dataset="")
        manager.wait_until_finished()
    return epath.Path(workdir)


def assert_refused(act, where, path="strangers.parts:run"):
    with pytest.raises(InputError) as raised:
        act()
    message = str(raised.value)
    assert message.startswith(str(where)) and path in message and "\n" not in message


@pytest.mark.parametrize("key", STRANGERS)
def test_the_parts_in_an_exported_file_must_be_of_this_repository(tmp_path, strangers, key):
    path = tmp_path / "star.safetensors"
    save_archive(path, config=config_with(key, STRANGERS[key]), variables=VARIABLES, step=7)
    for load in (load_archive, load_weights, Embedder.from_checkpoint):
        for trusted in ((), ("stranger", "strangers.part")):
            assert_refused(lambda load=load, t=trusted: load(path, trusted=t), path)
    assert not strangers.exists()
    # Who trusts the package gets the config; what it names is still not called unless it is a part.
    assert load_archive(path, trusted=("strangers",)).config.to_dict()
    assert not strangers.exists()
    if key in ("model.backbone", "model.guidance", "model.pooling"):
        with pytest.raises(InputError, match=rf"^config\.{key} is .*function"):
            load_weights(path, trusted=("strangers",))


@pytest.mark.parametrize("name", ["subprocess:Popen", "sys:exit", "os:system", "builtins:dict"])
def test_loading_a_file_starts_no_command(tmp_path, name):
    command = ["touch", str(tmp_path / "started")]
    config = config_with("model.backbone", name)
    with config.ignore_type():
        config.model.backbone_options = {"args": command}
    path = tmp_path / "star.safetensors"
    save_archive(path, config=config, variables=VARIABLES, step=7)
    module = name.partition(":")[0]
    assert_refused(lambda: load_weights(path), path, name)
    with pytest.raises(InputError, match=rf"^config\.model\.backbone is '{name}'"):
        load_weights(path, trusted=(module,))
    assert not (tmp_path / "started").exists()


@pytest.mark.slow
def test_the_parts_in_a_run_must_be_of_this_repository(tmp_path, strangers):
    for number, (key, value) in enumerate(STRANGERS.items()):
        config = config_with(key, value)
        workdir = saved_run(tmp_path / f"run{number}", config)
        starting = tiny.baseline("nowhere")
        starting.init.checkpoint = str(workdir)
        for act in (
            lambda workdir=workdir: load_weights(workdir),
            lambda workdir=workdir: Embedder.from_checkpoint(workdir / "checkpoints/7"),
            lambda workdir=workdir: restore_network(workdir, None),
            lambda workdir=workdir: evaluate_checkpoint(workdir, 7),
            lambda starting=starting: with_network(None, starting),
        ):
            assert_refused(act, f"{workdir}/checkpoints/7: config.{key} ")
    assert not strangers.exists()


@pytest.mark.slow
def test_the_protocol_of_a_stored_evaluation_must_be_of_this_repository(tmp_path, strangers):
    workdir = saved_run(tmp_path / "run", tiny.baseline("nowhere"))
    path = write_run(workdir, protocol="strangers.parts:run", step=7)
    assert_refused(lambda: write_report(workdir, None), path)
    (report,) = read_reports(workdir, ("strangers",))
    assert report["protocol"] == "strangers.parts:run"
    assert not strangers.exists()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "run.json"])
def test_a_pipe_among_the_files_of_a_run_is_named(tmp_path, name):
    path = epath.Path(tmp_path / name)
    os.mkfifo(path)
    read = read_rows if name == "metrics.jsonl" else run_files.read_json
    with pytest.raises(InputError, match=f"{name}: is a folder, a pipe or a device"):
        read(path)


def test_a_config_that_is_only_compared_is_not_imported(tmp_path, strangers):
    before = config_with("model.pooling", STRANGERS["model.pooling"])
    with pytest.raises(InputError, match=r"model\.pooling was strangers\.parts:run, now gem"):
        run_files.require_same(tmp_path, run_files.as_json(before), tiny.baseline("nowhere"))
    assert not strangers.exists()


@pytest.mark.parametrize(
    "stored",
    [
        *("text", 3, None, [], [["model", {}]], {}, {"model": 3}, {"a.b": 1}, {"model": []}),
        {"model": {"__class__": 1}},
    ],
)
def test_what_is_no_config_is_named(stored):
    with pytest.raises(InputError, match=r"^run/7: ") as raised:
        read_config(stored, "run/7", ())
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_a_config_of_any_depth_is_read_or_named():
    """A parser of JSON may return lists that are deeper than Python's stack."""
    content = run_files.as_json(tiny.baseline("nowhere"))
    deep = "strangers.parts:run"
    for _ in range(2000):
        deep = [deep]
    content["model"]["backbone_options"] = {"width": deep}
    with pytest.raises(InputError, match=r"^run/7: "):
        read_config(content, "run/7", ())


def test_every_key_that_can_name_code_is_tested():
    assert {key for key, (values, *_) in KEYS.items() if values.name_parts} == STRANGERS.keys()


def test_completing_a_config_leaves_the_stored_one(monkeypatch):
    monkeypatch.setattr("star_jax.stored.ADDED_KEYS", {"model.new": 1, "model.pooling": "max"})
    stored = {"model": {"pooling": "gem"}}
    assert complete(stored) == {"model": {"pooling": "gem", "new": 1}}
    assert stored == {"model": {"pooling": "gem"}}


def test_a_config_from_before_a_key_is_the_same_config():
    now = tiny.baseline("nowhere")
    before = run_files.as_json(now)
    for key in ADDED_KEYS:
        section, _, name = key.partition(".")
        del before[section][name]
        now[section][name] = ADDED_KEYS[key]
    assert run_files.differences(before, now) == []


def test_every_command_that_opens_a_stored_config_has_the_flag():
    opening = {"load_weights", "restore_network", "evaluate_checkpoint", "write_report", "train"}
    found = {}
    for path in (ROOT / "launch").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in opening:
                named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                found[path.stem] = named.get("trusted")
    assert found == dict.fromkeys(
        ("embed", "eval", "export", "report", "search", "train"), "TRUSTED.value"
    )
