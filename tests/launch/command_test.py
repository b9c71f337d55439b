"""How commands end: one line for what a user can fix, a traceback for anything else."""

import ast
import dataclasses
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import video_files

from configs import star_synthetic_demo
from launch import command
from star_jax.config import with_values
from star_jax.config.experiment import KEYS
from star_jax.models import build_model

ROOT = Path(__file__).parents[2]


def run(body, *arguments):
    """A command whose main function has this body."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from launch import command
def main():
    {body}
command.run(main)
"""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "from data_pipelines.errors import InputError; raise InputError('a.txt: is\\nempty')",
            "error: a.txt: is empty",
        ),
        (
            "from data_pipelines.errors import MissingPackageError as E; raise E('no gcsfs')",
            "error: no gcsfs",
        ),
        (
            "open('/nowhere')",
            "error: [Errno 2] No such file or directory: '/nowhere'",
        ),
        (
            "from data_pipelines.errors import OutOfMemoryError as E; raise E('a step: shrink it')",
            "error: a step: shrink it",
        ),
        ("raise MemoryError('an array')", "error: out of memory: an array"),
        (
            "raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.')",
            "error: out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.",
        ),
    ],
)
def test_what_a_user_can_fix_is_one_line(body, line):
    result = run(body)
    assert result.returncode == 1 and result.stderr == f"{line}\n"
    verbose = run(body, "--verbosity=1")
    assert verbose.returncode == 1 and "Traceback" in verbose.stderr and line in verbose.stderr


@pytest.mark.parametrize(
    "body",
    [
        "import numpy as np; np.ones(3) @ np.ones(4)  # a ValueError of a user's own loss",
        "import a_package_that_does_not_exist",
        "raise FloatingPointError('of jax_debug_nans')",
    ],
)
def test_any_other_error_shows_where_it_comes_from(body):
    result = run(body)
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "in main" in result.stderr


SLEEP = "import time; print(flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    "code",
    [
        f"import launch; {SLEEP}  # as while packages are imported",
        f"from launch import command\ndef main(): {SLEEP}\ncommand.run(main)",
        f"import atexit\nfrom launch import command\ndef last(): {SLEEP}\natexit.register(last)\n"
        "command.run(lambda: None)",
    ],
)
def test_ctrl_c_ends_a_command_in_one_line(code):
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == b"error: interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("import sys; sys.exit('no GPU')", 2, "{file}: the file ends the command.*no GPU"),
        ("import sys; sys.exit(0)", 2, "{file}: the file ends the command"),
        ("import sys; sys.exit(1)", 2, "{file}: the file ends the command"),
        ("raise KeyboardInterrupt", 130, "error: interrupted"),
    ],
)
def test_a_config_file_that_ends_the_command_is_one_line(tmp_path, body, code, line):
    file = tmp_path / "config.py"
    file.write_text(f"def get_config():\n    {body}\n")
    result = subprocess.run(
        [sys.executable, "launch/train.py", f"--config={file}", "--workdir=nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code and result.stderr.count("\n") == 1
    assert re.search(line.format(file=re.escape(str(file))), result.stderr), result.stderr


def test_what_a_thread_cannot_write_is_one_line():
    failing = "import threading; t = threading.Thread(target=lambda: open('/nowhere'), name='w')"
    result = run(f"{failing}; t.start(); t.join()")
    assert result.returncode == 0
    assert result.stderr == "warning: w: [Errno 2] No such file or directory: '/nowhere'\n"
    result = run(f"{failing.replace(chr(39) + '/nowhere' + chr(39), '0 / 0')}; t.start(); t.join()")
    assert "ZeroDivisionError" in result.stderr and "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--workdir=a"], "a"),
        (["--checkpoint=a/checkpoints/7"], "a/checkpoints/7"),
        ([], "error: pass either --workdir or --checkpoint"),
        (["--workdir=a", "--checkpoint=b"], "error: pass either --workdir or --checkpoint"),
        (["--workdir="], "error: pass either --workdir or --checkpoint"),
    ],
)
def test_one_of_two_flags_is_given(arguments, printed):
    define = "from absl import flags; define = lambda name: flags.DEFINE_string(name, None, '')"
    body = (
        f"print(command.either(*FLAGS))\n{define}\nFLAGS = define('workdir'), define('checkpoint')"
    )
    ended = run(body, *arguments)
    assert (ended.stdout + ended.stderr).strip() == printed


COMMANDS = [
    path
    for path in sorted((ROOT / "launch").rglob("*.py"))
    if "command.run(main" in path.read_text(encoding="utf-8")
]


TEXTS = {  # flags that are neither paths nor of another type
    *("camera", "coordinator", "corrupt", "dataset", "input_size", "protocol", "split", "topology"),
}


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_paths_are_flags_of_their_own_kind(path):
    """Otherwise --flag=~/x and --flag=gs://x would make folders of these names."""
    calls = [
        node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if type(node) is ast.Call
    ]
    plain = [
        c for c in calls if ast.unparse(c.func).endswith((".DEFINE_string", "define_required"))
    ]
    assert {call.args[0].value for call in plain} <= TEXTS


DEFINED = (
    "print(HERE.value, ANYWHERE.value)\n"
    "HERE = command.define_path('here', 'data', 'A folder.')\n"
    "ANYWHERE = command.define_path('anywhere', None, 'A folder.', addresses=True)"
)


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ([], "data None"),
        (["--here=~/x", "--anywhere=~"], "/homes/me/x /homes/me"),
        (["--here=./~/x", "--anywhere=a/~"], "./~/x a/~"),
        (["--here=", "--anywhere=gs://bucket/~/x"], "gs://bucket/~/x"),
        (["--here=gs://bucket/x"], "error: --here=gs://bucket/x: is a URL"),
        (["--here=gs:/bucket"], "error: --here=gs:/bucket: is a URL"),
        (["--here=~nobody0/x"], "error: --here=~nobody0/x: there is no such user"),
        (["--anywhere=~nobody0"], "error: --anywhere=~nobody0: there is no such user"),
        (["--anywhere=s3://bucket"], "error: --anywhere=s3://bucket: use a local path"),
    ],
)
def test_paths_on_the_command_line(monkeypatch, arguments, printed):
    monkeypatch.setenv("HOME", "/homes/me")
    ended = run(DEFINED, *arguments)
    assert (ended.stdout + ended.stderr).strip().startswith(printed)
    assert ended.returncode == (2 if printed.startswith("error") else 0)


def test_paths_of_config_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "grid.py").write_text("def get_grid(x='none'):\n    return x\n")
    assert command.call_in_file("grid", "~/grid.py", "get_grid") == "none"
    assert command.call_in_file("grid", "~/grid.py:a", "get_grid") == "a"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["~/packed", "gs://bucket/packed"])
def test_no_folder_is_named_after_an_address_or_a_tilde(tmp_path, place):
    video_files.write_image(tmp_path / "people/alice/visible/door/walk/1.jpg")
    (tmp_path / "home").mkdir()
    packing = subprocess.run(
        [
            *(sys.executable, str(ROOT / "launch/prepare.py"), "--dataset=folder"),
            *("--source=people", "--without_skeletons", f"--data_dir={place}"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "people"]
    is_address = place.startswith("gs")
    assert (tmp_path / "home/packed/folder/1.1.0").exists() != is_address
    assert packing.returncode == (2 if is_address else 0)


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
@pytest.mark.parametrize("as_module", [False, True])
def test_a_command_is_a_file_and_a_module(path, as_module):
    name = path.relative_to(ROOT)
    started = ["-m", ".".join(name.with_suffix("").parts)] if as_module else [str(name)]
    result = subprocess.run(
        [sys.executable, *started, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    description = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert description in result.stdout, result.stderr  # examples keep their line breaks
    assert max(map(len, description.splitlines())) <= 100
    assert result.returncode == 0


def test_help_marks_flags_that_must_be_given():
    result = subprocess.run(
        [sys.executable, "launch/train.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    text = " ".join(result.stdout.split())
    for flag in ("--config: A file in", "--workdir: Folder of the run"):
        assert re.search(f"{flag}[^()]*Required\\.", text)
    assert "Required" not in text.partition("--num_processes")[2].partition("--")[0]


def overridden(*arguments, base=None):
    """Returns the demo's config with the overrides of a command line."""
    others, overrides = command.split_overrides(arguments)
    assert others == []
    return with_values(base or star_synthetic_demo.get_config(), overrides)


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--config.seed=7"], "seed", 7),
        (["--config.seed", "7"], "seed", 7),
        (["-config.seed=7"], "seed", 7),
        (["--config.seed=7", "--config.seed=8"], "seed", 8),
        (["--config.optim.lr=0.5"], "optim.lr", 0.5),
        (["--config.optim.lr=1e-3"], "optim.lr", 0.001),
        (["--config.optim.lr=1"], "optim.lr", 1.0),
        (["--config.augment.style"], "augment.style", True),
        (["--config.augment.style=False"], "augment.style", False),
        (["--config.augment.style=false"], "augment.style", False),
        (["--noconfig.augment.style"], "augment.style", False),
        (["--config.data.dir=gs://b/a=b c"], "data.dir", "gs://b/a=b c"),
        (["--config.data.dir=2026"], "data.dir", "2026"),
        (["--config.init.checkpoint="], "init.checkpoint", ""),
        (["--config.model.guidance=none"], "model.guidance", "none"),
        (["--config.model.pooling=a.b:C"], "model.pooling", "a.b:C"),
        (["--config.data.frame_size=(64, 32)"], "data.frame_size", (64, 32)),
        (["--config.data.frame_size=64,32"], "data.frame_size", (64, 32)),
        (["--config.data.frame_size=[64, 32]"], "data.frame_size", (64, 32)),
        (["--config.optim.decay_epochs=40"], "optim.decay_epochs", (40,)),
        (["--config.optim.decay_epochs=()"], "optim.decay_epochs", ()),
        (["--config.losses.extra=(('a.b:c', 0.1),)"], "losses.extra", (("a.b:c", 0.1),)),
        (["--config.model.num_identities=500"], "model.num_identities", 500),
        (["--config.model.num_identities=None"], "model.num_identities", None),
        (["--config.model.backbone_options.width=8"], "model.backbone_options.width", 8),
        (["--config.model.backbone_options.ibn=True"], "model.backbone_options.ibn", True),
        (
            ["--config.model.backbone_options.stage_sizes=(1, 2, 1, 1)"],
            "model.backbone_options.stage_sizes",
            (1, 2, 1, 1),
        ),
    ],
)
def test_any_value_can_be_overridden(arguments, key, value):
    config = overridden(*arguments)
    *sections, name = key.split(".")
    found = config.to_dict()
    for section in sections:
        found = found[section]
    assert found[name] == value and type(found[name]) is type(value)
    before = flat(star_synthetic_demo.get_config().to_dict())
    after = flat(config.to_dict())
    changed = {other for other, found in after.items() if before.get(other, "-") != found}
    assert changed <= {key}


def flat(config):
    values = {}
    for key, value in config.items():
        if isinstance(value, dict):
            values |= {f"{key}.{name}": each for name, each in flat(value).items()}
        else:
            values[key] = value
    return values


def test_each_value_of_a_config_can_be_written_on_the_command_line():
    values = flat(star_synthetic_demo.get_config().to_dict())
    assert values.keys() >= KEYS.keys() - {"model.backbone_options"}
    config = overridden(*(f"--config.{key}={value}" for key, value in values.items()))
    assert {k: (v, type(v)) for k, v in flat(config.to_dict()).items()} == {
        k: (v, type(v)) for k, v in values.items()
    }


def test_a_value_may_have_another_type_than_that_of_the_file():
    base = star_synthetic_demo.get_config()
    del base.optim.lr, base.model.num_identities, base.optim.decay_epochs
    base.optim.lr, base.model.num_identities, base.optim.decay_epochs = 1, 500, [3, 5]
    config = overridden(
        *("--config.optim.lr=0.5", "--config.model.num_identities=None"),
        "--config.optim.decay_epochs=(4, 6)",
        base=base,
    )
    assert config.optim.lr == 0.5 and config.model.num_identities is None
    assert config.optim.decay_epochs == (4, 6)


def test_options_are_replaced_as_a_whole():
    """So that a backbone can be chosen that lacks the options in the config's file."""
    chosen = "--config.model.backbone=vit_small"
    config = overridden(chosen, "--config.model.backbone_options={}")
    assert config.model.backbone_options == {}
    model = dataclasses.replace(config.model, num_identities=8)
    assert build_model(model).backbone.width == 384
    for order in (1, -1):
        options = ["--config.model.backbone_options={'width': 12}"]
        options.append("--config.model.backbone_options.depth=2")
        config = overridden(chosen, *options[::order])
        assert config.model.backbone_options == {"width": 12, "depth": 2}


def test_what_is_no_override_stays():
    arguments = ["a", "--workdir=b", "--", "--config.seed=1"]
    assert command.split_overrides(arguments) == (arguments, {})


def test_a_file_of_flags_has_overrides(tmp_path):
    (tmp_path / "flags").write_text("--workdir=a\n--config.seed=3\n")
    arguments = [f"--flagfile={tmp_path}/flags", "--config.optim.lr=1"]
    assert command.split_overrides(arguments) == (["--workdir=a"], {"seed": 3, "optim.lr": 1})


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("--config.seed=x", "config.seed"),
        ("--config.seed=None", "config.seed"),
        ("--config.seed=1.0", "config.seed"),
        ("--noconfig.seed", "config.seed"),
        ("--config.seed", "config.seed"),
        ("--config.optim.lr=nan", "config.optim.lr"),
        ("--config.optim.lr=(0.1,)", "config.optim.lr"),
        ("--config.augment.style=1", "config.augment.style"),
        ("--config.data.dir=", "config.data.dir"),
        ("--config.data.frame_size=64", "config.data.frame_size"),
        ("--config.model.guidance=all joints", "config.model.guidance"),
        ("--config.model.backbone_options=8", "config.model.backbone_options"),
        ("--config.optim={}", "config.optim"),
        ("--config.optim.rate=1", "config.optim.rate"),
        ("--config.model.backbone_options.a.b=1", "config.model.backbone_options.a.b"),
    ],
)
def test_an_override_that_cannot_be_is_refused(argument, key, capsys, monkeypatch):
    # The end of a command silences its process, which here has other tests to run.
    for module, name in ((logging, "disable"), (threading, "excepthook"), (sys, "unraisablehook")):
        monkeypatch.setattr(module, name, lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        command.split_overrides([argument])
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.count("\n") == 1
    assert f"{key}=" in printed or f"{key}:" in printed
