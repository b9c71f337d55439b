"""The TPU commands: what they would run, the manifest, and what a compiled program says."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.tpu import compile as tpu_compile
from launch.tpu.estimate import CHIPS, Collective, Program, estimate, read_program, summary

ROOT = Path(__file__).parents[2]
TPU = ROOT / "launch/tpu"
VARIABLES = {
    "PROJECT": "some-project",
    "ZONE": "us-west4-a",
    "NAME": "star",
    "TYPE": "v5litepod-16",
    "IMAGE": "registry/star_jax",
    "TOPOLOGY": "v5e:16x16",
}
PLACE = ["--project=some-project", "--zone=us-west4-a"]
ODD = ["--config=configs/a.py", "--workdir=gs://b/a run", '--config.x=it\'s "q" $HOME & \\n @NAME@']


def script(name, *arguments, **changes):
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    environment |= {key: value for key, value in {**VARIABLES, **changes}.items() if value}
    command = ["bash", str(TPU / name), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=100
    )


def printed(name, *arguments, **changes):
    """The commands of a dry run, split into words as a shell would."""
    result = script(name, "--dry-run", *arguments, **changes)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    return [
        words(line) for line in lines if line.startswith(("gcloud", "git", "rm", "kube", "dock"))
    ]


def words(line):
    """Splits words as bash does, since shlex does not know its quoting ($'...')."""
    result = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True
    )
    return result.stdout.split("\0")[:-1]


TPUS = ["gcloud", "compute", "tpus"]


def test_create():
    accelerator = "--accelerator-type=v5litepod-16"
    assert printed("vm.sh", "create") == [
        [*TPUS, "tpu-vm", "create", "star", *PLACE, accelerator, "--version=v2-alpha-tpuv5-lite"]
    ]
    queued = [*TPUS, "queued-resources", "create", "star", "--node-id=star", *PLACE, accelerator]
    assert printed("vm.sh", "--queued", "--spot", "create") == [
        [*queued, "--spot", "--runtime-version=v2-alpha-tpuv5-lite"]
    ]


@pytest.mark.parametrize(
    ("type_", "image"),
    [
        ("v4-16", "tpu-ubuntu2204-base"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_images(type_, image):
    assert printed("vm.sh", "create", TYPE=type_)[0][-1] == f"--version={image}"


def test_install_sends_the_last_commit_and_installs_on_all_workers():
    archive, copy, remove, install = printed("vm.sh", "install")
    output = next(x for x in archive if x.startswith("--output=")).removeprefix("--output=")
    assert archive[0] == "git" and archive[-1] == "HEAD"
    assert copy == [*TPUS, "tpu-vm", "scp", output, "star:star_jax.tar.gz", *PLACE, "--worker=all"]
    assert remove == ["rm", output]
    assert install[:-1] == [*TPUS, "tpu-vm", "ssh", "star", *PLACE, "--worker=all"]
    assert '--editable ".[tpu]"' in install[-1]
    # Training is stopped before the environment is removed.
    lines = install[-1].splitlines()
    assert lines[1].endswith("sudo systemctl stop star_jax")
    assert min(i for i, line in enumerate(lines) if "tar " in line or "venv" in line) > 1


def test_install_fills_in_the_service(tmp_path):
    """The line of `install` that writes the unit, run here with the real file."""
    *_, install = printed("vm.sh", "install")
    line = next(x for x in install[-1].splitlines() if x.startswith("sed "))
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    filled = subprocess.run(
        ["bash", "-c", line.removesuffix(" |")],
        cwd=tmp_path,
        env={"USER": "jane", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "User=jane\n" in filled and f"WorkingDirectory={tmp_path}\n" in filled
    assert "@" not in filled
    assert "Restart=on-failure\n" in filled and "TimeoutStopSec=600\n" in filled


def test_train_passes_arguments_through_two_shells(tmp_path):
    (command,) = printed("vm.sh", "train", *ODD)
    assert command[:-1] == [*TPUS, "tpu-vm", "ssh", "star", *PLACE, "--worker=all"]
    remote = command[-1].removeprefix("--command=")
    # Run what the worker would run, with stand-ins for sudo and for Python.
    python = tmp_path / "star_jax/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\0" "$@" > got\n')
    sudo = tmp_path / "bin/sudo"
    sudo.parent.mkdir()
    sudo.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/sudo\n')
    python.chmod(0o755)
    sudo.chmod(0o755)
    environment = {"PATH": f"{sudo.parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", remote], cwd=tmp_path, env=environment, check=True)
    subprocess.run(["bash", "train.sh"], cwd=tmp_path / "star_jax", check=True)
    got = (tmp_path / "star_jax/got").read_text().split("\0")[:-1]
    assert got == ["launch/train.py", *ODD]
    assert (tmp_path / "sudo").read_text().splitlines() == [
        "systemctl enable --quiet star_jax",
        "systemctl restart star_jax",
    ]


def test_run_shows_another_command_on_all_workers(tmp_path):
    (command,) = printed("vm.sh", "run", "launch/eval.py", *ODD)
    assert command[:-1] == [*TPUS, "tpu-vm", "ssh", "star", *PLACE, "--worker=all"]
    python = tmp_path / "star_jax/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\0" "$PWD" "$@"\n')
    python.chmod(0o755)
    remote = ["bash", "-c", command[-1].removeprefix("--command=")]
    result = subprocess.run(remote, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split("\0")[:-1] == [str(tmp_path / "star_jax"), "launch/eval.py", *ODD]


def test_logs_stop_and_delete():
    ssh = [*TPUS, "tpu-vm", "ssh", "star", *PLACE]
    follow = "--command=journalctl --unit=star_jax --output=cat --lines=100 --follow"
    assert printed("vm.sh", "logs") == [[*ssh, "--worker=0", follow]]
    assert printed("vm.sh", "logs", "3") == [[*ssh, "--worker=3", follow]]
    assert printed("vm.sh", "stop") == [
        [*ssh, "--worker=all", "--command=sudo systemctl disable --quiet --now star_jax"]
    ]
    assert printed("vm.sh", "delete") == [[*TPUS, "tpu-vm", "delete", "star", *PLACE, "--quiet"]]
    assert printed("vm.sh", "--queued", "delete") == [
        [*TPUS, "queued-resources", "delete", "star", *PLACE, "--force", "--quiet"]
    ]


def test_without_dry_run_the_commands_are_run(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > {tmp_path}/got\n')
    gcloud.chmod(0o755)
    result = script("vm.sh", "stop", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 0 and result.stdout == ""
    got = (tmp_path / "got").read_text().split("\0")[:-1]
    assert ["gcloud", *got] == printed("vm.sh", "stop")[0]


# A stand-in for gcloud, which grants chips at once, or from the queue at the second request. Once
# training has been started, its worker answers status requests with the words of ANSWERS.
GCLOUD = r"""#!/bin/bash
cd "$(dirname "$0")"
command="$*"
none() { echo "ERROR: (gcloud) NOT_FOUND: Resource 'nodes/star' was not found." >&2; exit 1; }
case "${command}" in
  *describe*)
    echo >> asked
    if [[ "$(wc -l < asked)" == "${UNREACHABLE:-}" ]]; then
      echo "ERROR: (gcloud) connection timed out" >&2
      exit 1
    fi ;;
  *is-active*) echo look >> log ;;
  *) printf '%s\n' "${command%% --*}" >> log ;;
esac
case "${command}" in
  *queued-resources\ create*) echo WAITING_FOR_RESOURCES > queue ;;
  *queued-resources\ describe*) cat queue 2>/dev/null || none; echo READY > node ;;
  *tpu-vm\ create*) echo READY > node ;;
  *tpu-vm\ describe*) cat node 2>/dev/null || none ;;
  *delete*) rm -f queue node service ;;
  *systemctl\ restart*)
    echo >> service
    [[ "$(wc -l < service)" != "${UNTRAINED:-}" ]] || exit 255 ;;
  *is-active*)
    [[ -e service ]] || { echo inactive; exit 3; }
    echo >> looks
    answers=(${ANSWERS})
    answer="${answers[$(wc -l < looks) - 1]}"
    [[ "${answer}" != lost ]] || { eval "${LOSE:-}"; exit 255; }
    echo "${answer}"
    [[ "${answer}" == active ]] ;;
esac
"""


def keep(folder, *flags, **changes):
    """The lines that `keep` prints, and what it did: a verb of gcloud, or `look`, a line."""
    gcloud = folder / "gcloud"
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)
    options = {"PATH": f"{folder}:{os.environ['PATH']}", "POLL_SECONDS": "0.01", **changes}
    result = script("vm.sh", *flags, "keep", *ODD, **options)
    assert result.returncode == 0, result.stderr
    assert ("timed out" in result.stderr) == ("UNREACHABLE" in changes)
    log = (folder / "log").read_text().replace("compute tpus ", "")
    return result.stdout.splitlines(), re.sub("(scp) .*", r"\1", log).splitlines()


SSH = "tpu-vm ssh star"
BEGIN = ["tpu-vm create star", "look", "tpu-vm scp", SSH, SSH]
DONE = "training is done; "


@pytest.mark.parametrize("lose", ["echo PREEMPTED > node", "rm queue node service"])
def test_keep_restarts_until_training_is_done(tmp_path, lose):
    options = {"LOSE": lose, "ANSWERS": "active lost inactive"}
    printed, log = keep(tmp_path, "--queued", "--spot", **options)
    taken = lose.startswith("echo")  # what no longer exists need not be deleted
    assert [line[:18] for line in printed] == ["the chips are gone"] * taken + [DONE]
    queue = "queued-resources"
    begin = [f"{queue} create star", *BEGIN[1:]]
    assert log == [*begin, "look", "look", *[f"{queue} delete star"] * taken, *begin, "look"]


@pytest.mark.parametrize(("flags", "time"), [([], 4), (["--queued"], 4), (["--queued"], 6)])
def test_keep_does_nothing_if_google_does_not_answer(tmp_path, flags, time):
    options = {"UNREACHABLE": str(time), "ANSWERS": "active active inactive"}
    printed, log = keep(tmp_path, *flags, **options)
    assert [line[:18] for line in printed] == [DONE]
    create = "queued-resources create star" if flags else BEGIN[0]
    assert log == [create, *BEGIN[1:], "look", "look", "look"]


@pytest.mark.parametrize(
    "answers", ["active inactive", "activating inactive", "lost active inactive"]
)
def test_keep_leaves_running_training_alone(tmp_path, answers):
    (tmp_path / "node").write_text("READY\n")
    (tmp_path / "service").write_text("\n")
    printed, log = keep(tmp_path, ANSWERS=answers)
    assert [line[:18] for line in printed] == ["training is alread", DONE]
    assert log == ["look"] * len(answers.split())


def test_keep_restarts_if_only_some_workers_were_reached(tmp_path):
    """One of them is training, which does not prevent a restart."""
    _, log = keep(tmp_path, UNTRAINED="1", ANSWERS="active inactive")
    assert log == [*BEGIN, *BEGIN[1:], "look"]


def test_keep_dry_run_shows_one_round():
    commands = printed("vm.sh", "--queued", "--spot", "keep", *ODD)
    assert commands[1] == printed("vm.sh", "--queued", "--spot", "create")[0]
    assert commands[2:6] == printed("vm.sh", "install")
    assert commands[6] == printed("vm.sh", "train", *ODD)[0]
    assert commands[0][3:5] == ["tpu-vm", "describe"]
    assert commands[7][-1] == "--command=systemctl is-active star_jax"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(("vm.sh", [verb, "--dry-run"]) for verb in ("create", "install", "stop", "delete")),
        *(("vm.sh", [verb, *ODD, "--dry-run"]) for verb in ("train", "keep", "run")),
        *(("vm.sh", ["train", *ODD, flag]) for flag in ("--spot", "--queued", "--help")),
        ("vm.sh", ["keep", "--dry_run=true", *ODD]),
        ("vm.sh", ["logs", "--dry-run"]),
        ("vm.sh", ["logs", "3", "--dry-run"]),
        *(("gke.sh", [verb, "--dry-run"]) for verb in ("build", "logs", "delete")),
        *(("gke.sh", ["submit", *ODD, flag]) for flag in ("--dry-run", "--spot")),
    ],
)
def test_flags_of_the_scripts_must_not_follow_the_verb(tmp_path, name, arguments):
    for tool in ("gcloud", "kubectl", "docker", "git"):
        (tmp_path / tool).write_text(f"#!/bin/sh\necho >> {tmp_path}/called\n")
        (tmp_path / tool).chmod(0o755)
    result = script(name, *arguments, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert not (tmp_path / "called").exists()
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: --")
    assert f"before the verb: {TPU / name} --" in result.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "changes", "message"),
    [
        ("vm.sh", ["keep"], {}, "--workdir"),
        ("vm.sh", ["stop"], {"PROJECT": ""}, "PROJECT"),
        ("vm.sh", ["create"], {"TYPE": ""}, "TYPE"),
        ("vm.sh", ["create"], {"TYPE": "v3-8"}, "TYPE=v3-8"),
        ("vm.sh", ["train"], {}, "--workdir"),
        ("vm.sh", ["explode"], {}, "explode"),
        ("vm.sh", ["stop", "now"], {}, "now"),
        ("vm.sh", ["logs", "all"], {}, "all"),
        ("vm.sh", ["logs", "0", "1"], {}, "0 1"),
        ("vm.sh", ["run"], {}, "launch/eval.py"),
        ("vm.sh", [], {}, "name a command"),
        ("gke.sh", ["submit", "--config=a"], {"IMAGE": ""}, "IMAGE"),
        ("gke.sh", ["submit", "--config=a"], {"TOPOLOGY": "v5e-16"}, "TOPOLOGY=v5e-16"),
        ("gke.sh", ["submit", "--config=a"], {"TOPOLOGY": "v3:4x4"}, "TOPOLOGY=v3:4x4"),
        ("gke.sh", ["submit", "--config=a"], {"NAME": "Star"}, "NAME=Star"),
        ("gke.sh", ["submit"], {}, "--workdir"),
        ("gke.sh", [], {}, "name a command"),
    ],
)
def test_mistakes_are_one_line(name, arguments, changes, message):
    result = script(name, "--dry-run", *arguments, **changes)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "apply" not in result.stdout and "gcloud" not in result.stdout


def manifest(*arguments, **changes):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    result = script("gke.sh", "--dry-run", *arguments, **changes)
    assert result.returncode == 0, result.stderr
    text, command = result.stdout.rstrip("\n").rsplit("\n", 1)
    assert words(command) == ["kubectl", "apply", "--filename=-"]
    return yaml.safe_load(text)


@pytest.mark.parametrize(
    "topology",
    [
        *("v5e:3x3", "v5e:2x2x2", "v5e:08x08", "v5e:1x4", "v5e:4x2", "v5e:16x32", "v6e:2x8"),
        *("v4:4x4", "v5p:2x4", "v4:2x2x3", "v4:4x4x2", "v5p:4x4x6", "v4:8x4x4", "v4:04x04x04"),
        *("v4:4x4x", "v5p:4x4x8x4", "v5p:2x2x0", "v4:", "v4", "v5e:$(id)", "v4:4x4x9999"),
    ],
)
def test_topologies_that_gke_does_not_have(topology):
    result = script("gke.sh", "--dry-run", "submit", *ODD, TOPOLOGY=topology)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(f"error: TOPOLOGY={topology}: ")
    assert result.stderr.count("\n") == 1 and "x" in result.stderr.rpartition(":")[2]


@pytest.mark.parametrize(
    ("topology", "accelerator", "hosts", "chips"),
    [
        ("v5e:16x16", "tpu-v5-lite-podslice", 64, 4),
        ("v5e:2x4", "tpu-v5-lite-podslice", 1, 8),
        ("v6e:4x4", "tpu-v6e-slice", 4, 4),
        ("v6e:2x2", "tpu-v6e-slice", 1, 4),
        ("v4:2x2x1", "tpu-v4-podslice", 1, 4),
        ("v4:2x2x2", "tpu-v4-podslice", 2, 4),
        ("v4:12x16x16", "tpu-v4-podslice", 768, 4),
        ("v5p:4x4x8", "tpu-v5p-slice", 32, 4),
    ],
)
def test_manifest(topology, accelerator, hosts, chips):
    spec = manifest("submit", *ODD, TOPOLOGY=topology, SERVICE_ACCOUNT="trainer")["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == hosts
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
    }
    assert pod["terminationGracePeriodSeconds"] == 600
    assert pod["serviceAccountName"] == "trainer"
    (container,) = pod["containers"]
    assert container["image"] == "registry/star_jax"
    assert container["command"] == ["python", "launch/train.py", *ODD]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert spec["failurePolicy"]["maxRestarts"] > 0


def pod_of_manifest(*arguments):
    job = manifest(*arguments)["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job["template"]["spec"]


def test_manifest_on_spot_nodes():
    pod = pod_of_manifest("--spot", "submit", *ODD)
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_the_copy_of_the_dataset_outlives_the_pods():
    """Where the copy goes by the environment, the node's own disk is mounted."""
    pod = pod_of_manifest("submit", *ODD)
    (container,), (volume,) = pod["containers"], pod["volumes"]
    (mount,) = container["volumeMounts"]
    (variable,) = container["env"]
    assert variable["name"] == "XDG_CACHE_HOME"
    assert mount == {"name": volume["name"], "mountPath": f"{variable['value']}/star_jax"}
    assert volume["hostPath"] == {"path": "/var/cache/star_jax", "type": "DirectoryOrCreate"}


def test_sigterm_reaches_training():
    """It is neither the child of a shell nor process 1, which ignores unhandled signals."""
    pod = pod_of_manifest("submit", *ODD)
    assert pod["containers"][0]["command"][0] == "python"
    assert pod["shareProcessNamespace"] is True


def test_the_manifest_names_no_port_of_jax():
    """JAX chooses its coordinator's, and between pods all ports are open."""
    (container,) = pod_of_manifest("submit", *ODD)["containers"]
    assert [port["containerPort"] for port in container["ports"]] == [8471]


def test_gke_commands():
    build, push = printed("gke.sh", "build")
    assert build[:2] == ["docker", "build"] and Path(build[3]).samefile(TPU / "Dockerfile")
    assert Path(build[-1]).samefile(ROOT)
    assert push == ["docker", "push", "registry/star_jax"]
    label = "jobset.sigs.k8s.io/jobset-name=star,batch.kubernetes.io/job-completion-index=0"
    assert printed("gke.sh", "logs") == [
        ["kubectl", "logs", f"--selector={label}", "--tail=100", "--follow"]
    ]
    assert printed("gke.sh", "delete") == [["kubectl", "delete", "jobset", "star"]]


def test_the_image_holds_all_packages():
    copied = (TPU / "Dockerfile").read_text().split()
    assert {"star_jax", "data_pipelines", "configs", "launch"} <= set(copied)


def test_shellcheck():
    shellcheck = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=Path(sys.executable).parent
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    scripts = [*sorted(map(str, TPU.glob("*.sh"))), ".ci/run"]
    assert len(scripts) == 4
    command = [shellcheck, "--external-sources", *scripts]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


HLO = """HloModule jit_train_step, is_scheduled=true

%fused (p: f32[8]) -> f32[64] {
  %p = f32[8]{0:T(128)} parameter(0)
  ROOT %all-gather.1 = f32[64]{0:T(128)} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], \
dimensions={0}, metadata={op_name="gather"}
}

%condition (s: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  ROOT %compare = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %ride = f32[64]{0:T(128)} fusion(%y), kind=kCustom, calls=%fused
  %work = f32[4]{0} fusion(%x), kind=kLoop, calls=%inner, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %all-reduce.2 = f32[4]{0} all-reduce(%work), channel_id=2, replica_groups={{0,1},{2,3}}, \
to_apply=%add, metadata={op_name="loop"}
}

ENTRY %main (a: f32[8]) -> f32[64] {
  %a = f32[8]{0:T(128)} parameter(0)
  %big = bf16[1024,8]{1,0} fusion(%a), backend_config={"window_config":{"estimated_cycles":"5000"}}
  %loop = (s32[], f32[4]{0}) while(%start), condition=%condition, body=%body
  %part.1 = f32[64]{0:T(128)} fusion(%a), kind=kCustom, calls=%fused
  %part.2 = f32[64]{0:T(128)} fusion(%a), kind=kCustom, calls=%fused
  %all-reduce.3 = (bf16[1024,8]{1,0:T(8,128)(2,1)}, f32[]{:T(128)}) all-reduce(%big, %c), \
channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_0','axis_2'}, \
to_apply=%add, metadata={op_name="gradients"}
  %permute = (u8[10]{0}, u8[10]{0}, u32[]) collective-permute-start(%u), channel_id=4
  %done = u8[10]{0} collective-permute-done(%permute)
}
"""


def test_read_program():
    program = read_program(HLO, num_devices=8)
    assert program.cycles == 5000 + 12 * 100
    assert set(program.collectives) == {
        Collective("all-gather", 256, 8, 1, "gather"),  # in three parts, one of them in the loop
        Collective("all-reduce", 16, 2, 12, "loop"),
        Collective("all-reduce", 1024 * 8 * 2 + 4, 8, 1, "gradients"),
        Collective("collective-permute", 10, 8, 1, ""),
    }


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="entry"):
        read_program("HloModule nothing", 8)


@given(st.sampled_from(["all-reduce", "all-gather", "reduce-scatter", "all-to-all"]), st.data())
@settings(deadline=None, max_examples=60)
def test_bytes_sent_match_a_ring_walked_step_by_step(kind, data):
    group = data.draw(st.integers(2, 12))
    block = data.draw(st.integers(1, 50))
    whole = group * block
    # In a ring each chip passes on one block a step: to collect all blocks takes group - 1 steps,
    # and so does adding them up.
    steps = {"all-gather": group - 1, "reduce-scatter": group - 1, "all-reduce": 2 * (group - 1)}
    result = block if kind == "reduce-scatter" else whole
    sent = Collective(kind, result, group).sent_bytes()
    # To all others directly: one block to each.
    assert sent == pytest.approx(block * steps.get(kind, group - 1))


def test_estimate_takes_the_slower_of_arithmetic_and_memory():
    chip = CHIPS["v5e"]
    gradients = Collective("all-reduce", 2 * 10**8, 16)
    program = Program(cycles=3_000_000, collectives=(gradients, gradients))
    times = estimate(chip, flops=197e9, num_bytes=819e6 * 1.5, program=program)
    assert times.compute == pytest.approx(1e-3)
    assert times.memory == pytest.approx(1.5e-3)
    assert times.cycles == pytest.approx(2e-3)
    # 15/16 of the bytes out and in again, and a torus of 4 x 4: 2 rounds of 4 hops.
    assert times.transfer == pytest.approx(2 * (2 * 2e8 * 15 / 16 / 200e9 + 8e-6))
    assert times.roofline == pytest.approx(1.5e-3 + times.transfer)
    assert times.step == pytest.approx(2e-3 + times.transfer)


def test_cycles_that_would_beat_the_arithmetic_are_not_used():
    times = estimate(CHIPS["v4"], flops=275e9, num_bytes=0, program=Program(10, ()))
    assert times.cycles is None
    assert times.step == times.roofline == pytest.approx(1e-3)


def test_summary_adds_up():
    ones = [Collective("all-reduce", 4, 8, 12), Collective("all-reduce", 100, 8)]
    (row,) = summary(ones, CHIPS["v6e"])
    assert (row["number"], row["bytes"], row["largest"]) == (13, 148, 100)


def test_clocks_are_those_of_the_matrix_units():
    for name, units, side in (("v4", 8, 128), ("v5e", 4, 128), ("v5p", 8, 128), ("v6e", 4, 256)):
        chip = CHIPS[name]
        assert chip.flops == pytest.approx(2 * units * side**2 * chip.clock, rel=0.01), name


@pytest.mark.parametrize("topology", ["v5e", "v5e:2x", "v9:2x2", "v5e:2x2x2", "v4:4x4", "v5e:0x4"])
def test_invalid_topologies(topology):
    with pytest.raises(ValueError, match="--topology"):
        tpu_compile.parse_topology(topology)


def test_parse_topology():
    assert tpu_compile.parse_topology("v5p:4x4x8") == ("v5p", 128)
    assert tpu_compile.parse_topology("v6e:16x16") == ("v6e", 256)


def test_a_program_that_does_not_fit():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 25.1G of 15.7G hbm."
    assert "needs 25.1G of 15.7G" in tpu_compile.refusal(message)
    assert "does not fit" in tpu_compile.refusal("RESOURCE_EXHAUSTED: something")
    assert "INTERNAL: odd" in tpu_compile.refusal("INTERNAL: odd")


def run_compile(*arguments):
    command = [sys.executable, str(TPU / "compile.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_libtpu_the_error_says_what_to_do():
    if find_spec("libtpu"):
        pytest.skip("libtpu is installed")
    result = run_compile(f"--config={ROOT}/configs/star_synthetic_demo.py", "--topology=v5e:2x4")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and 'pip install -e ".[tpu]"' in result.stderr


def report(chips, pairs):
    step = 0.01 + 0.001 * math.log2(chips)
    return {
        "topology": f"v5e:1x{chips}",
        "chips": chips,
        "pairs": pairs,
        "memory": {"parameters": 2**30, "temporaries": 2**31},
        "memory_limit": 2**34,
        "seconds": {"cycles": None, "transfer": 0.001, "roofline": step, "step": step},
        "frames_per_second": 24 * pairs / step,
        "model_flops_utilisation": 0.25,
    }


@pytest.mark.slow
def test_table_and_plot(tmp_path):
    paths = []
    for chips, pairs in ((16, 16), (8, 16), (8, 8)):
        path = tmp_path / f"{chips}_{pairs}.json"
        path.write_text(json.dumps(report(chips, pairs)))
        paths.append(str(path))
    plot = tmp_path / "plot.svg"
    command = [sys.executable, str(TPU / "scaling.py"), f"--plot={plot}", *paths]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = result.stdout.splitlines()[2:]
    assert [row.split(" | ")[1:3] for row in rows] == [["8", "8"], ["8", "16"], ["16", "16"]]
    assert rows[1] == (
        "| v5e:1x8 | 8 | 16 | 2 | 3.0 of 16 | - | 1.0 | 13.0 | 13.0 | 29,538 | 25.0 % |"
    )
    assert plot.read_text().count("</svg>") == 1


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    if find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: nothing was compiled for a TPU")
    path = tmp_path_factory.mktemp("tpu") / "report.json"
    result = run_compile(
        f"--config={ROOT}/configs/star_synthetic_demo.py", "--topology=v5e:2x4", f"--json={path}"
    )
    assert result.returncode == 0, result.stderr
    return json.loads(path.read_text())


@pytest.mark.slow
def test_large_collectives_are_those_of_gradients_and_mining(compiled):
    """The demo's network on 8 chips of v5e: nothing as large as a feature map is sent."""
    parameters = compiled["memory"]["parameters"]
    sizes = {row["kind"]: row["largest"] for row in compiled["collectives"]}
    assert set(sizes) <= {"all-reduce", "all-gather"}
    assert parameters / 2 < sizes["all-reduce"] < 1.2 * parameters
    # Styles of frames and embeddings; a map of stage 2 of one chip's frames has 48 KiB.
    assert sizes["all-gather"] <= 48 * 2**10
    assert sum(compiled["memory"].values()) < compiled["memory_limit"]


@pytest.mark.slow
def test_what_cannot_be_compiled_is_one_line(compiled):
    config = f"--config={ROOT}/configs/star_synthetic_demo.py"
    for topology, more, message in (
        ("v5e:3x5", [], "v5e:3x5 is not available"),
        ("v5e:4x4", ["--config.data.identities_per_batch=3"], "cannot share 6 pairs"),
    ):
        result = run_compile(config, f"--topology={topology}", *more)
        assert result.returncode == 1
        assert result.stderr.strip().count("\n") == 0, result.stderr
        assert message in result.stderr


def test_dry_runs_quote_for_a_shell():
    """What is printed can be pasted: bash and shlex read the same from a plain line."""
    line = script("vm.sh", "--dry-run", "stop").stdout
    assert shlex.split(line) == words(line)
