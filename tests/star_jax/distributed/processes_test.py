"""Several real processes train as one, and stop together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from data_pipelines.errors import InputError
from data_pipelines.records.dataset import open_dataset
from star_jax.distributed import parallel, processes
from star_jax.models import build_model
from star_jax.runs import checkpoint
from star_jax.state import abstract_state
from star_jax.training import loop

ROOT = Path(__file__).parents[3]
TWO = ["launch/local_processes.py", "-n", "2", "--devices=2", "--", "launch/train.py"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny.packed_dataset(tmp_path_factory.mktemp("dataset"))


def start(arguments, **options) -> subprocess.Popen:
    """Starts a command without the virtual devices of the tests, and with XLA's own time-outs."""
    quick = [flag for flag in os.environ["XLA_FLAGS"].split() if "fusion_emitters" in flag]
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(quick)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def report_of(workdir):
    """Returns the only evaluation report of a run, without its environment."""
    (path,) = (workdir / "eval").glob("*.json")
    report = json.loads(path.read_text())
    del report["environment"]
    return path, report


def metrics(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def wait_for_rows(workdir, count, process):
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and process.poll() is None:
        if (workdir / "metrics.jsonl").exists() and len(metrics(workdir)) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {count} rows: {process.communicate(timeout=300)[0]}")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return tiny.backbone_file(tmp_path_factory.mktemp("backbone"))[0]


@pytest.fixture(scope="module")
def one(dataset, backbone, tmp_path_factory):
    """Returns the workdir of a one-process run from backbone weights, with an evaluation."""
    workdir = tmp_path_factory.mktemp("one")
    config = tiny.config(dataset)
    config.init.backbone = str(backbone)
    config.eval.every_epochs = 12
    loop.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def two(dataset, backbone, tmp_path_factory):
    """Returns workdir and output of the same run with two processes of two devices each."""
    folder = tmp_path_factory.mktemp("two")
    start_from = f"config.init.backbone = {str(backbone)!r}"
    config = tiny.config_file(folder, dataset, "config.eval.every_epochs = 12", start_from)
    process = start([*TWO, f"--config={config}", f"--workdir={folder / 'run'}"])
    printed = process.communicate(timeout=900)[0]
    assert process.returncode == 0, printed
    return folder / "run", printed


SLURM = {  # what srun sets for the first task of a node
    **{"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NODEID": "0"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
}


@pytest.mark.parametrize(
    ("gpus", "tasks", "node", "idle"),
    [
        *[("8", "1", "0", True), ("8", "8", "0", False), ("8", "8(x2)", "1", False)],
        *[("4", "4(x2),1", "2", True), ("4", "4(x2),1", "1", False), ("1", "1", "0", False)],
        *[("4", "4,2", "1", True), ("", "1", "0", False), ("a100:8", "1", "0", False)],
    ],
)
def test_gpus_that_no_task_of_slurm_would_use_are_refused(gpus, tasks, node, idle):
    found = SLURM | {"SLURM_GPUS_ON_NODE": gpus, "SLURM_STEP_TASKS_PER_NODE": tasks}
    found["SLURM_NODEID"] = node
    if not idle:
        processes.require_a_task_for_each_gpu(found)
        return
    with pytest.raises(InputError, match=f"--ntasks-per-node={gpus} ") as raised:
        processes.require_a_task_for_each_gpu(found)
    assert "\n" not in str(raised.value)
    chosen = "JAX_LOCAL_DEVICE_IDS=" + ",".join(str(number) for number in range(int(gpus)))
    assert chosen in str(raised.value)
    for name, value in (chosen.split("="), ("JAX_PLATFORMS", "cpu")):
        processes.require_a_task_for_each_gpu(found | {name: value})
    del found["SLURM_LOCALID"]  # inside sbatch, without srun: JAX takes all GPUs
    processes.require_a_task_for_each_gpu(found)


@pytest.mark.slow
def test_tasks_of_slurm_find_each_other():
    program = (
        "import jax; from star_jax.distributed import processes; processes.start();"
        "print(jax.process_index(), jax.process_count(), jax.device_count())"
    )
    variables = SLURM | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    variables["SLURM_JOB_ID"] = str(os.getpid())  # chooses the port
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ
            | variables
            | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}
            | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for task in range(2)
    ]
    printed = [task.communicate(timeout=300)[0].split() for task in tasks]
    assert printed == [["0", "2", "2"], ["1", "2", "2"]]


@pytest.mark.slow
def test_two_processes_train_as_one(one, two):
    workdir, printed = two
    assert json.loads((workdir / "run.json").read_text())["processes"] == 2
    rows, expected = metrics(workdir), metrics(one)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    first = {k: v for k, v in expected[0].items() if k != "frames_per_second"}
    for name, value in first.items():
        assert rows[0][name] == pytest.approx(value, rel=1e-5), name
    # Rounding errors grow from step to step.
    assert rows[11]["loss/total"] == pytest.approx(expected[11]["loss/total"], rel=0.05)
    assert "[0] " in printed and "[1] training" not in printed
    assert "devices: 4 (cpu), 2 of this process; processes: 2" in printed


@pytest.mark.slow
def test_both_processes_evaluate_and_one_writes(one, two):
    (_, report), (_, expected) = report_of(two[0]), report_of(one)
    assert report["step"] == 12
    for direction in ("i2v", "v2i"):
        assert report[direction]["queries"] == expected[direction]["queries"] == 8
        assert 0 < report[direction]["map"] <= 100


@pytest.mark.slow
@pytest.mark.usefixtures("late")  # starts them
def test_both_processes_evaluate_a_checkpoint(two, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(two[0], workdir)
    path, expected = report_of(workdir)
    path.unlink()
    process = start([*TWO[:-1], "launch/eval.py", f"--workdir={workdir}"])
    printed = process.communicate(timeout=900)[0]
    assert process.returncode == 0, printed
    assert f"[0] written to {path}" in printed and "[1] written" not in printed
    assert report_of(workdir) == (path, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (4, 1), (4, 4)])
def test_their_checkpoint_is_restored_by_any_number_of_devices(two, dataset, devices, fsdp):
    config = tiny.config(dataset)
    config.parallel.fsdp = fsdp
    mesh = parallel.make_mesh(config, jax.devices()[:devices])
    abstract = abstract_state(config, build_model(config.model), 1, mesh)
    with checkpoint.open_manager(two[0], 2) as manager:
        state, _ = checkpoint.restore_state(manager, abstract)
    assert int(state.step) == 12
    one = parallel.make_mesh(config, jax.devices()[:1]) if fsdp == 1 else mesh
    abstract = abstract_state(config, build_model(config.model), 1, one)
    with checkpoint.open_manager(two[0], 2) as manager:
        again, _ = checkpoint.restore_state(manager, abstract)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(again))
    for leaf, wanted in zip(
        jax.tree.leaves(state.params),
        jax.tree.leaves(abstract_state(config, build_model(config.model), 1, mesh).params),
        strict=True,
    ):
        assert leaf.sharding == wanted.sharding


@pytest.mark.slow
def test_one_may_be_ready_half_a_minute_after_the_other(late):
    printed = late.communicate(timeout=900)[0]
    assert late.returncode == 0, printed


def patched(folder, patch):
    """Returns a script that runs a patch and then launch/train.py."""
    script = folder / "patched.py"
    script.write_text(
        "import os, runpy, sys\nsys.path.insert(0, os.getcwd())\n"
        f'{patch}\nrunpy.run_path("launch/train.py", run_name="__main__")\n'
    )
    return script


LATE = """
import os, time
from star_jax.training import loop
put = loop.put
def late(*arguments):
    if os.environ["JAX_PROCESS_ID"] == "1" and loop.put is late:
        loop.put = put
        time.sleep(35)
    return put(*arguments)
loop.put = late
"""


@pytest.fixture(scope="module")
def late(dataset, tmp_path_factory):
    """Yields two processes of which one is late, so that other tests run while they wait."""
    folder = tmp_path_factory.mktemp("late")
    config = tiny.config_file(folder, dataset, "config.optim.epochs = 2", base="baseline")
    process = start(
        [*TWO[:-1], patched(folder, LATE), f"--config={config}", f"--workdir={folder / 'run'}"]
    )
    yield process
    process.terminate()  # does nothing if it has ended


UNLUCKY = """
import os
from star_jax.runs import checkpoint
checkpoint.PAUSES = (0.1,)
restore = checkpoint._restore_arrays
attempts = []
def unlucky(folder, *rest):
    restored = restore(folder, *rest)
    attempts.append(folder.name)
    if os.environ["JAX_PROCESS_ID"] == "1" and len(attempts) == 1:
        raise OSError("the storage is gone")
    if os.environ["JAX_PROCESS_ID"] == "1" and folder.name == "12":
        raise checkpoint.DamagedError("step 12 is damaged")
    return restored
checkpoint._restore_arrays = unlucky
"""

MIXED = """
from star_jax.distributed import parallel
from star_jax.training import preparation
make_mesh = parallel.make_mesh
def mixed(config=None):
    devices = parallel.jax.devices()
    return make_mesh(config, [devices[i] for i in (0, 2, 1, 3)])
preparation.make_mesh = mixed
"""


@pytest.mark.slow
def test_the_devices_of_a_process_need_not_be_neighbors(dataset, tmp_path):
    config = tiny.baseline(dataset)
    config.optim.epochs = config.eval.every_epochs = 1
    loop.train(config, tmp_path / "one")
    changes = "config.optim.epochs = config.eval.every_epochs = 1"
    file = tiny.config_file(tmp_path, dataset, changes, base="baseline")
    process = start(
        [*TWO[:-1], patched(tmp_path, MIXED), f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    )
    printed = process.communicate(timeout=900)[0]
    assert process.returncode == 0, printed
    assert metrics(tmp_path / "run")[0]["loss/total"] == pytest.approx(
        metrics(tmp_path / "one")[0]["loss/total"], rel=1e-5
    )
    assert report_of(tmp_path / "run")[1]["i2v"]["queries"] == 8


IMPATIENT = """
from star_jax.runs import run_files
run_files.require_shared.__defaults__ = (3,)
"""


@pytest.mark.slow
def test_processes_that_do_not_share_the_workdir_are_refused(dataset, tmp_path):
    config = tiny.config_file(tmp_path, dataset, base="baseline")
    port = free_port()
    both = [
        start(
            [
                patched(tmp_path, IMPATIENT),
                f"--config={config}",
                f"--workdir={tmp_path / str(i)}",
                f"--coordinator=localhost:{port}",
                "--num_processes=2",
                f"--process_id={i}",
            ]
        )
        for i in range(2)
    ]
    for process in both:
        printed = process.communicate(timeout=600)[0]
        assert process.returncode == 1, printed
        assert "not all processes see the same folder here" in printed


@pytest.mark.slow
def test_all_try_again_and_all_go_back_for_one(dataset, tmp_path):
    workdir = tmp_path / "run"
    saved = tiny.baseline(dataset)
    saved.parallel.fsdp = 2
    shapes = abstract_state(saved, build_model(saved.model), 1, parallel.make_mesh(saved))
    with checkpoint.open_manager(workdir, 2) as manager:
        for step in (9, 12):
            state = tiny.random_state(shapes).replace(step=np.int32(step))
            checkpoint.save(manager, state, saved.to_dict(), open_dataset(dataset).fingerprint)
        checkpoint.finish(manager)
    config = tiny.config_file(tmp_path, dataset, "config.parallel.fsdp = 2", base="baseline")
    process = start(
        [*TWO[:-1], patched(tmp_path, UNLUCKY), f"--config={config}", f"--workdir={workdir}"]
    )
    printed = process.communicate(timeout=900)[0]
    assert process.returncode == 0, printed
    assert printed.count("trying again in 0 s") == 2  # both processes
    assert "12 is damaged" in printed and "resuming from step 9 of 12" in printed
    assert (workdir / "checkpoints" / "12.damaged").is_dir()


@pytest.mark.slow
def test_a_single_process_with_a_coordinator_stops_on_a_signal(dataset, tmp_path):
    config = tiny.config_file(tmp_path, dataset, "config.optim.epochs = 100000", base="baseline")
    address = [f"--coordinator=localhost:{free_port()}", "--num_processes=1", "--process_id=0"]
    process = start(
        ["launch/train.py", f"--config={config}", f"--workdir={tmp_path / 'run'}", *address]
    )
    deadline = time.monotonic() + 600
    while not (tmp_path / "run" / "config.json").exists():  # before the first step
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 143, printed
    assert "is saved; the same command resumes" in printed


@pytest.mark.slow
def test_interrupted_they_save_and_resume(two, dataset, backbone, tmp_path):
    start_from = f"config.init.backbone = {str(backbone)!r}"
    config = tiny.config_file(tmp_path, dataset, "config.checkpoint.every_steps = 1000", start_from)
    command = [*TWO, f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    process = start(command)
    wait_for_rows(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGINT)  # passed on to both processes as SIGTERM
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 143, printed
    (step,) = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert 3 <= step < 12 and f"step {step} is saved" in printed
    process = start(command)
    printed = process.communicate(timeout=900)[0]
    assert process.returncode == 0, printed
    assert f"resuming from step {step} of 12" in printed
    for row, expected in zip(metrics(tmp_path / "run"), metrics(two[0]), strict=False):
        assert row["loss/total"] == expected["loss/total"], row["step"]


WATCHFUL = """
from star_jax.distributed import processes
processes.HEARTBEAT_SECONDS = processes.SHUTDOWN_SECONDS = 10
"""


@pytest.mark.slow
def test_a_process_that_dies_stops_the_others_with_an_error(dataset, tmp_path):
    config = tiny.config_file(tmp_path, dataset, "config.optim.epochs = 100000", base="baseline")
    port = free_port()
    command = [patched(tmp_path, WATCHFUL), f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    both = [
        start(
            [*command, f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={i}"]
        )
        for i in range(2)
    ]
    wait_for_rows(tmp_path / "run", 3, both[0])
    both[1].kill()
    died = time.monotonic()
    printed = both[0].communicate(timeout=600)[0]
    assert both[0].returncode != 0, printed
    assert time.monotonic() - died < 60  # without the patch, over 100
    assert "rror" in printed


FAILING = """
from star_jax.{room} import {name} as module
works = module.{function}
def fails(*arguments, **options):
    if "--process_id={number}" in sys.argv:
        raise {error}
    return works(*arguments, **options)
module.{function} = fails
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "number", "error"),
    [
        (("training", "preparation", "check_parts"), 1, "ZeroDivisionError('of process 1')"),
        (("training", "preparation", "check_parts"), 0, "OSError('the disk of process 0')"),
        (("runs", "checkpoint", "_restore_arrays"), 1, "ZeroDivisionError('of process 1')"),
    ],
)
def test_a_process_that_fails_ends_the_others_which_name_it(
    dataset, tmp_path, place, number, error
):
    room, name, function = place
    tiny.saved_run(tmp_path / "run", tiny.baseline(dataset))
    config = tiny.config_file(tmp_path, dataset, base="baseline")
    patch = FAILING.format(room=room, name=name, function=function, number=number, error=error)
    address = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    both = [
        start(
            [
                *(patched(tmp_path, patch), f"--config={config}", f"--workdir={tmp_path / 'run'}"),
                *(*address, f"--process_id={i}"),
            ]
        )
        for i in range(2)
    ]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [1, 1], printed
    failed, waiting = printed[number], printed[1 - number]
    assert error.split("'")[1] in failed.splitlines()[-1], failed
    last = waiting.splitlines()[-1]
    assert f"process {number} has failed" in last and error.split("'")[1] in last, waiting
    assert "Fatal Python error" not in failed + waiting


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_processes_with_other_configs_are_refused(dataset, tmp_path):
    port = free_port()
    both = []
    for i in range(2):
        config = tiny.config_file(
            tmp_path, dataset, f"config.seed = {i}", base="baseline", name=f"{i}.py"
        )
        both.append(
            start(
                [
                    "launch/train.py",
                    f"--config={config}",
                    f"--workdir={tmp_path / 'run'}",
                    f"--coordinator=localhost:{port}",
                    "--num_processes=2",
                    f"--process_id={i}",
                ]
            )
        )
    for process in both:
        printed = process.communicate(timeout=600)[0]
        assert process.returncode == 1, printed
        assert "the config of process 1 differs from that of process 0" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_coordinator_that_nobody_reaches_is_an_error_after_the_given_time(dataset, tmp_path):
    config = tiny.config_file(tmp_path, dataset, base="baseline")
    begun = time.monotonic()
    process = start(
        [
            "launch/train.py",
            f"--config={config}",
            f"--workdir={tmp_path / 'run'}",
            f"--coordinator=localhost:{free_port()}",
            "--num_processes=2",
            "--process_id=1",
            "--connect_seconds=5",
        ]
    )
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert "error: no answer from --coordinator=localhost" in printed.splitlines()[-1], printed
    assert time.monotonic() - begun < 150  # the default is 300


def test_half_an_address_is_refused(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="--coordinator, --num_processes"):
        processes.start("localhost:1234")
    with pytest.raises(ValueError, match="--process_id=2 of --num_processes=2"):
        processes.start("localhost:1234", 2, 2)
    with pytest.raises(ValueError, match="must be host:port"):
        processes.start("localhost", 2, 1)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is 'two'"):
        processes.start()


def test_alone_nothing_is_started():
    processes.start()
    assert jax.process_count() == 1
    processes.check_same("the config", "anything")


def test_ctrl_c_and_sigterm_ask_to_stop():
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    for signum in before:
        with processes.watch_for_stop() as stop_requested:
            assert not stop_requested()
            signal.raise_signal(signum)
            assert stop_requested()
        assert {signum: signal.getsignal(signum) for signum in before} == before
        assert signal.set_wakeup_fd(-1) == -1


BUSY = """
import hashlib
from star_jax.distributed import processes
with processes.watch_for_stop():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)  # no Python code runs meanwhile
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_at_once_and_a_second_ctrl_c_ends_at_once(signum):
    process = start(["-c", BUSY])
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signum)
    printed = iter(process.stdout.readline, "")
    reading = threading.Thread(target=lambda: next(line for line in printed if line.strip()))
    reading.start()
    reading.join(60)
    answered = not reading.is_alive()
    process.send_signal(signal.SIGINT if answered else signal.SIGKILL)
    assert process.wait(60) == 130 and answered
