"""The files of a run: which run owns a workdir, and its environment."""

import contextlib
import errno
import fcntl
import json
import shlex
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath

from configs import star_synthetic_demo
from data_pipelines.errors import InputError, Preempted
from star_jax.runs import run_files


def demo_config(**changes):
    config = star_synthetic_demo.get_config()
    settled = {"seed": 0, "optim.lr": 0.05, "data.frame_size": (96, 48), "losses.triplet": 1.0}
    config.update_from_flattened_dict({**settled, **changes})
    return config


def test_claim_writes_the_config_and_the_environment(tmp_path):
    workdir = tmp_path / "runs" / "first"
    config = demo_config()
    run_files.claim(workdir, config)
    written = json.loads((workdir / "config.json").read_text())
    assert written == json.loads(config.to_json())
    assert written["data"]["frame_size"] == [96, 48]
    environment = json.loads((workdir / "run.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert len(environment["devices"]) == jax.device_count()
    assert environment["processes"] == 1
    assert environment["git_revision"]
    assert shlex.split(environment["command"]) == sys.argv
    assert sorted(path.name for path in workdir.iterdir()) == ["config.json", "run.json"]


def test_the_record_has_the_time_of_all_starts(tmp_path):
    def start(seconds, error=None):
        run_files.claim(tmp_path, demo_config())
        with (
            contextlib.suppress(OSError, Preempted),
            run_files.timed(tmp_path, time.monotonic() - seconds),
        ):
            if error:
                raise error
        record = json.loads((tmp_path / "run.json").read_text())
        return [record.get(name) for name in ("seconds", "seconds_in_all")]

    assert start(100) == [pytest.approx(100, abs=5), pytest.approx(100, abs=5)]
    assert start(50, Preempted()) == [
        pytest.approx(50, abs=5),
        pytest.approx(150, abs=9),
    ]
    assert start(50, OSError("disk full")) == [None, pytest.approx(150, abs=9)]


def test_claim_accepts_the_same_config_again(tmp_path):
    run_files.claim(tmp_path, demo_config())
    run_files.claim(tmp_path, demo_config())


def test_claim_accepts_and_writes_what_does_not_change_earlier_steps(tmp_path):
    run_files.claim(tmp_path, demo_config())
    changes = {
        "data.dir": "elsewhere",
        "data.num_threads": 5,
        "eval.batch_size": 7,
        "eval.clips": "dense",
        "checkpoint.keep": 9,
        "log_every_steps": 3,
        "init.backbone": "moved.safetensors",
        "init.checkpoint": "runs/moved",
        "optim.epochs": 99,
    }
    run_files.claim(tmp_path, demo_config(**changes))
    written = run_files.flatten(run_files.read_json(tmp_path / "config.json"))
    assert {key: written[key] for key in changes} == changes


def test_a_second_run_is_kept_out_until_the_first_ends(tmp_path):
    workdir = epath.Path(tmp_path / "run")
    with run_files.claimed(workdir, demo_config()):
        with (
            pytest.raises(ValueError, match="another run is active here"),
            run_files.claimed(workdir, demo_config(log_every_steps=3)),
        ):
            pass
        assert run_files.read_json(workdir / "config.json")["log_every_steps"] == 10
    with run_files.claimed(workdir, demo_config(log_every_steps=3)):
        assert run_files.read_json(workdir / "config.json")["log_every_steps"] == 3


def test_a_file_system_without_locks_works_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_files.claimed(epath.Path(tmp_path), demo_config()):
        assert (tmp_path / "config.json").exists()
    assert "No locks available" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "before"),
    [
        ("optim.lr", 0.25, "0.05"),
        ("seed", 7, "0"),
        ("data.identities_per_batch", 4, "8"),
        ("data.tracklets_per_identity", 4, "2"),
        ("data.frame_size", (64, 48), r"\[96, 48\]"),
        ("losses.triplet", 2.0, "1.0"),
    ],
)
def test_claim_refuses_another_config_and_names_the_key(tmp_path, key, value, before):
    run_files.claim(tmp_path, demo_config())
    (tmp_path / "checkpoints/10").mkdir(parents=True)
    files = {path: path.read_text() for path in tmp_path.glob("*.json")}
    now = str(value).translate({ord("("): r"\[", ord(")"): r"\]"})
    with pytest.raises(ValueError, match=rf"{key} was {before}, now {now}\. Use another --workdir"):
        run_files.claim(tmp_path, demo_config(**{key: value}))
    assert files == {path: path.read_text() for path in tmp_path.glob("*.json")}


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ([], False),
        (["checkpoints"], False),
        (["checkpoints/10.orbax-checkpoint-tmp"], False),
        (["checkpoints/10"], True),
        (["checkpoints/10.damaged"], True),
        (["eval/10-any-first-01234567.json"], True),
    ],
)
def test_a_run_that_saved_nothing_may_have_another_config(tmp_path, left, kept):
    run_files.claim(tmp_path, demo_config())
    record = run_files.read_json(tmp_path / "run.json")
    run_files.write_json(tmp_path / "run.json", {**record, "seconds_in_all": 50})
    for name in left:
        (tmp_path / name).mkdir(parents=True)
    if kept:
        with pytest.raises(InputError, match="seed"):
            run_files.claim(tmp_path, demo_config(seed=3))
    else:
        run_files.claim(tmp_path, demo_config(seed=3))
    assert run_files.read_json(tmp_path / "config.json")["seed"] == (0 if kept else 3)
    seconds = run_files.read_json(tmp_path / "run.json")["seconds_in_all"]
    assert seconds == (50 if kept else 0)  # of the earlier run


def test_claim_names_every_difference_and_absent_keys(tmp_path):
    config = demo_config()
    del config.losses.defense
    run_files.claim(tmp_path, config)
    (tmp_path / "checkpoints/10").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"losses.defense was absent, now .*; seed was 0, now 3"):
        run_files.claim(tmp_path, demo_config(seed=3))


@pytest.mark.parametrize("content", ["", '{"seed": 0', "\xff"])
def test_claim_names_a_broken_file(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"config\.json: .*remove it, or use another --workdir"):
        run_files.claim(tmp_path, demo_config())


def report(**changes):
    dataset = {"dir": "data", "fingerprint": "0123456789abcdef"}
    kind = {
        **{"step": 120, "protocol": "hitsz_vcm/v1", "dataset": dataset},
        **{"split": "test", "clips": "first", "options": {}},
    }
    return {**kind, "mean_ap": 0.5, **changes}


def test_a_report_is_written_by_step_with_what_computed_it(tmp_path):
    queries = {"i2v_identities": np.array(["0503"])}
    path = run_files.write_report(epath.Path(tmp_path), report(), queries)
    assert path == tmp_path / "eval" / "120-hitsz_vcm-v1-first-01234567.json"
    written = json.loads(path.read_text())
    assert written["mean_ap"] == 0.5 and written["environment"]["packages"]["jax"]
    for score, identity in ((0.75, "0503"), (0.8, "0504")):
        queries = {"i2v_identities": np.array([identity])}
        run_files.write_report(epath.Path(tmp_path), report(mean_ap=score), queries)
        arrays = run_files.queries_path(path)
        assert sorted(path.parent.iterdir()) == sorted([arrays, path])
        with np.load(arrays, allow_pickle=False) as found:
            assert dict(found) == queries
        assert run_files.read_json(path)["mean_ap"] == score


@pytest.mark.parametrize("killed_before", ["queries", "report", "the old queries are removed"])
def test_a_reader_sees_a_report_with_its_own_queries(tmp_path, monkeypatch, killed_before):
    """Whenever the process that replaces them is killed; what it left is replaced later."""
    workdir = epath.Path(tmp_path)
    scores = [{"i2v_scores": np.full(3, score)} for score in (0.5, 0.75)]
    path = run_files.write_report(workdir, report(), scores[0])

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if killed_before == "queries":
            patch.setattr(run_files, "write_file", kill)
        elif killed_before == "report":
            patch.setattr(run_files, "write_json", kill)
        else:
            patch.setattr(type(path), "unlink", kill)
        with pytest.raises(KeyboardInterrupt):
            run_files.write_report(workdir, report(mean_ap=0.75), scores[1])
    for _ in range(2):
        with np.load(run_files.queries_path(path), allow_pickle=False) as found:
            assert (found["i2v_scores"] == run_files.read_json(path)["mean_ap"]).all()
        run_files.write_report(workdir, report(mean_ap=0.75), scores[1])


def test_nothing_is_read_of_a_report_that_has_no_queries_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "write_json", lambda *_: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        run_files.write_report(epath.Path(tmp_path), report(), {})
    with pytest.raises(FileNotFoundError):
        run_files.report_paths(epath.Path(tmp_path))


def test_a_report_names_no_file_elsewhere(tmp_path):
    path = epath.Path(tmp_path / "eval" / "12-x.json")
    path.parent.mkdir()
    for facts in ("../a.queries.npz", "/a/b.queries.npz", "..", "", None, 3, "12-y.json"):
        path.write_text(json.dumps({"queries": facts}))
        assert run_files.queries_path(path) == path.parent / "12-x.queries.npz"
    path.write_text("{}")  # as earlier versions wrote it
    assert run_files.queries_path(path) == path.parent / "12-x.queries.npz"


@pytest.mark.parametrize(
    "change",
    [
        {"step": 240},
        {"protocol": "buptcampus/full"},
        {"clips": "dense"},
        {"options": {"rerank": True}},
        {"options": {"rerank": True, "expansion": 3}},
        {"options": {"clip_length": 6}},
        {"options": {"flip": True}},
        {"options": {"corrupt": "drop:0.3"}},
        {"split": "validation"},
        {"dataset": {"dir": "data", "fingerprint": "fedcba9876543210"}},
    ],
)
def test_a_report_of_another_kind_is_another_file(tmp_path, change):
    first = run_files.write_report(epath.Path(tmp_path), report(), {})
    before = first.read_text()
    second = run_files.write_report(epath.Path(tmp_path), report(**change), {})
    assert second != first and first.read_text() == before


def test_flatten_joins_keys_by_dots():
    assert run_files.flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {
        "a.b.c": 1,
        "a.d": [2],
        "e": None,
    }
