"""Reading the evaluations of a run: which one is meant, and files that were damaged or edited."""

import json
import math

import numpy as np
import pytest
from evaluated import DATASET, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.errors import InputError, UserError
from data_pipelines.io.files import write_json
from star_jax.comparison import comparison
from star_jax.evaluation.reports import read_evaluation, read_report
from star_jax.report.run import read_reports
from star_jax.runs import run_files


def test_an_evaluation_is_read_as_it_was_written(tmp_path):
    path = write_run(tmp_path, changes={"seed": 3})
    evaluation = read_evaluation(path)
    assert evaluation.report == json.loads(path.read_text())
    assert evaluation.seed == 3 and evaluation.record["dataset"]["fingerprint"] == DATASET
    assert evaluation.queries["v2i_scores"].shape == (60, 6)
    (tmp_path / "run.json").unlink()
    assert read_evaluation(path).record == {}


def test_a_run_stands_for_its_plain_evaluation_of_the_last_step(tmp_path):
    """That of the config, on the training dataset, whatever else was evaluated."""
    changes = {"eval.protocol": "hitsz_vcm/v1"}
    write_run(tmp_path, changes=changes, step=9)
    only = write_run(tmp_path, changes=changes, clips="dense")
    assert read_evaluation(tmp_path).path == only
    other = {"dir": "", "fingerprint": "98"}
    write_run(tmp_path, changes=changes, dataset=other)
    with pytest.raises(InputError, match=r"2 evaluations of step 12.*-dense-"):
        read_evaluation(tmp_path)
    plain = write_run(tmp_path, changes=changes)
    for extra in (
        {"options": {"rerank": True}},
        {"options": {"flip": True}},
        {"split": "validation"},
        {"protocol": "cross-modality"},
    ):
        write_run(tmp_path, changes=changes, **extra)
    write_json(tmp_path / "eval/notes.json", {"mine": 1})
    assert read_evaluation(tmp_path).path == plain
    assert read_evaluation(tmp_path, "98").report["dataset"] == other
    with pytest.raises(FileNotFoundError, match="12-hitsz_vcm-v1-first-abc"):
        read_evaluation(tmp_path, "abc")
    flipped = write_run(tmp_path, changes={**changes, "eval.flip": True}, options={"flip": True})
    assert read_evaluation(tmp_path).path == flipped


def test_missing_evaluations_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"launch/eval\.py"):
        read_evaluation(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"eval/1\.json"):
        read_evaluation(write_run(tmp_path).parent / "1.json")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ("i2v.map", "40"),
        ("i2v.map", math.nan),
        ("i2v.map", math.inf),
        ("i2v.map", 1e6),
        ("v2i.rank1", -1),
        ("v2i.rank1", True),
        ("v2i.rank1", 10**400),
        ("v2i.queries", 1.5),
        ("i2v.intervals.map", 3),
        ("i2v.intervals.map", [1, 2, 3]),
        ("i2v.intervals.map", [1, "2"]),
        ("i2v", None),
        ("i2v", []),
        ("step", "12"),
        ("step", -1),
        ("protocol", None),
        ("protocol", "\ud800"),
        ("dataset", "a"),
        ("dataset.fingerprint", 7),
        ("options", [1]),
        ("options", {"rerank": None}),
        ("environment", {"packages": {"jax": 1}}),
        ("i2v.by_condition", {"dark": 3}),
        ("i2v.by_camera_pair", [3]),
    ],
)
def test_a_wrong_value_of_a_report_is_named(tmp_path, keys, value):
    path = write_run(tmp_path)
    report = json.loads(path.read_text())
    *outer, last = keys.split(".")
    place = report
    for key in outer:
        place = place[key]
    place[last] = value
    path.write_text(json.dumps(report))
    with pytest.raises(InputError, match=rf"{path.name}.*\({keys}"):
        read_evaluation(tmp_path)
    del place[last]
    path.write_text(json.dumps(report))
    with pytest.raises(InputError, match=rf"{path.name}.*\({keys} is missing"):
        read_reports(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"null", b"3", b"[]", b"[{}]", b'"text"', b"{", b"{}", b"\xff\xfe\xfa", b"\x00"),
        *(b"[" * 100_000, b'{"a": ' * 60 + b"1" + b"}" * 60, b'{"step": ' + b"1" * 5000 + b"}"),
        *(b'{"step": 1, "step": 1}', b"NaN"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "run.json", "report"])
def test_strange_json_is_one_error_that_names_the_file(tmp_path, name, text):
    report = write_run(tmp_path)
    path = report if name == "report" else tmp_path / name
    path.write_bytes(text)
    if (name, text) == ("run.json", b"{}"):
        return  # all of it may be missing
    with pytest.raises(InputError, match=path.name):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("seed", "0"), ("optim.lr", "fast"), ("data", 3), ("eval.flip", 1)]
)
def test_a_wrong_value_of_a_config_is_named(tmp_path, key, value):
    write_run(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    place = config
    for outer in key.split(".")[:-1]:
        place = place[outer]
    place[key.split(".")[-1]] = value
    write_json(tmp_path / "config.json", config)
    with pytest.raises(InputError, match=rf"config\.json.*{key}"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("dataset", "a"), ("dataset", {"dir": ""}), ("git_revision", 3)]
)
def test_a_wrong_value_of_a_record_is_named(tmp_path, key, value):
    write_run(tmp_path)
    write_json(tmp_path / "run.json", {key: value})
    with pytest.raises(InputError, match=rf"run\.json.*{key}"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut", "other arrays", "objects"])
def test_damaged_scores_are_named(tmp_path, damage):
    path = run_files.queries_path(write_run(tmp_path))
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "other arrays":
        np.savez(path, x=np.zeros(3))
    else:
        np.savez(path, i2v_identities=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises((InputError, FileNotFoundError), match=r"queries\.npz"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("i2v_scores", lambda x: np.where(np.arange(6) == 3, np.nan, x)),
        ("v2i_scores", lambda x: x * 1e6),
        ("v2i_scores", lambda x: -x),
        ("v2i_scores", lambda x: x + np.inf),
        ("i2v_scores", lambda x: x[:, :5]),
        ("i2v_scores", lambda x: x.astype(str)),
        ("i2v_scores", lambda x: x[::-1] / 2),  # of another evaluation
        ("i2v_identities", lambda x: x[:-1]),
        ("v2i_identities", lambda x: np.arange(len(x))),
        ("v2i_conditions", lambda x: np.zeros(len(x))),
        ("i2v_positions", lambda x: x[:, None]),
        ("i2v_positions", lambda x: x.astype(float)),
    ],
)
def test_wrong_scores_of_queries_are_named(tmp_path, key, change):
    path = run_files.queries_path(write_run(tmp_path))
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, key: change(arrays[key])})
    with pytest.raises(InputError, match=rf"queries\.npz.*{key.replace('_', '.')}"):
        read_evaluation(tmp_path)


def places(value, path=()):
    """Yields the paths of all values inside a value of JSON, and of itself."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two runs, and what their files hold."""
    folder = tmp_path_factory.mktemp("runs")
    paths = [write_run(folder / str(seed), changes={"seed": seed}) for seed in (0, 1)]
    files = [paths[0], *(folder / "0" / name for name in ("config.json", "run.json"))]
    return folder, {path: path.read_bytes() for path in files}


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_mutated_evaluation_is_compared_or_refused_in_one_line(written, data):
    """Any value replaced or removed, or bytes of the file cut out or changed."""
    folder, contents = written
    path = data.draw(st.sampled_from(sorted(contents)))
    content = json.loads(contents[path])
    if data.draw(st.booleans()):
        *outer, last = data.draw(st.sampled_from([p for p in places(content) if p]))
        place = content
        for key in outer:
            place = place[key]
        if data.draw(st.booleans()):
            del place[last]
        else:
            place[last] = data.draw(JSON)
        changed = json.dumps(content).encode()
    else:
        start = data.draw(st.integers(0, len(contents[path])))
        cut = data.draw(st.integers(0, 20))
        added = data.draw(st.binary(max_size=5))
        changed = contents[path][:start] + added + contents[path][start + cut :]
    path.write_bytes(changed)
    try:
        evaluations = [read_evaluation(folder / str(seed)) for seed in (0, 1)]
        comparison.require_same_test_set(evaluations)
        comparison.format_comparison(comparison.methods_of(evaluations)).encode()
        read_report(contents and next(iter(contents)))
    except (UserError, FileNotFoundError):
        pass
    finally:
        path.write_bytes(contents[path])
