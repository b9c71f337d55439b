import json
import struct
import subprocess
import sys

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event, SessionLog

from data_pipelines.errors import InputError
from star_jax.runs import metrics
from star_jax.runs.metrics import MetricsWriter
from star_jax.training.pictures import draw_batch


def read_rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_events(workdir):
    """Reads the events of all TensorBoard files: length, checksum, message, checksum."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_writes_rows_and_scalars(tmp_path):
    with MetricsWriter(tmp_path / "new" / "run") as writer:
        writer.write(1, {"loss/triplet": 0.5, "rate": np.float32(0.25)})
        writer.write(2, {"loss/triplet": jnp.array(1.5, jnp.bfloat16), "queries": np.array(7)})
    workdir = tmp_path / "new" / "run"
    assert read_rows(workdir) == [
        {"step": 1, "loss/triplet": 0.5, "rate": 0.25},
        {"step": 2, "loss/triplet": 1.5, "queries": 7.0},
    ]
    scalars = {
        (event.step, value.tag, value.simple_value)
        for event in read_events(workdir)
        for value in event.summary.value
    }
    assert scalars == {
        (1, "loss/triplet", 0.5),
        (1, "rate", 0.25),
        (2, "loss/triplet", 1.5),
        (2, "queries", 7.0),
    }


def test_pictures_are_in_tensorboard(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    with MetricsWriter(tmp_path) as writer:
        writer.write_pictures(3, {"first_batch/visible": picture})
    with MetricsWriter(tmp_path / "second", enabled=False) as writer:
        writer.write_pictures(3, {"first_batch/visible": picture})
    assert not (tmp_path / "second").exists()
    (image,) = [
        (event.step, value.tag, value.image.encoded_image_string)
        for event in read_events(tmp_path)
        for value in event.summary.value
    ]
    assert image[:2] == (3, "first_batch/visible")
    decoded = cv2.imdecode(np.frombuffer(image[2], np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decoded, picture)


def test_a_disk_that_is_full_for_tensorboard_is_named(tmp_path):
    """In a process of its own, whose files may not grow; it must end, and not wait."""
    code = f"""
import resource, signal
import numpy as np
from star_jax.runs.metrics import MetricsWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with MetricsWriter({str(tmp_path)!r}) as writer:
    writer.write(1, {{"loss": 1.0}})
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    writer.write_pictures(1, {{"noise": noise}})
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    error = result.stderr.splitlines()[-1]
    assert error == f"OSError: {tmp_path}/tensorboard: cannot be written (File too large)"
    assert read_rows(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_a_batch_is_drawn_a_row_per_tracklet():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 200, (5, 3, 2, 20, 10, 3), np.uint8)
    keypoints = np.zeros((5, 3, 2, 17, 3), np.float32)
    keypoints[1, 2, 1, 0] = 4, 15, 0.9  # the nose of one infrared frame
    before = frames.copy()
    found = draw_batch({"frames": frames, "keypoints": keypoints}, pairs=2)
    visible, infrared = found["first_batch/visible"], found["first_batch/infrared"]
    assert visible.shape == infrared.shape == (2 * 20, 3 * 10, 3)
    np.testing.assert_array_equal(visible[20:, 10:20], frames[1, 1, 0])
    np.testing.assert_array_equal(infrared[:20, 20:], frames[0, 2, 1])
    changed = np.argwhere((infrared[20:, 20:] != frames[1, 2, 1]).any(-1))
    assert np.abs(changed - [15, 4]).max() <= 3 and tuple(infrared[35, 24]) == (0, 255, 0)
    np.testing.assert_array_equal(frames, before)


def test_rows_can_be_read_while_the_run_goes_on(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
        assert read_rows(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_not_a_number_is_written(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": float("nan")})
    assert np.isnan(read_rows(tmp_path)[0]["loss"])


@pytest.mark.parametrize(
    "value", [np.zeros(1), jnp.ones((2, 2)), "0.5", None, True, 1j, {"a": 1.0}]
)
def test_what_is_no_number_is_named(tmp_path, value):
    with MetricsWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="'loss/odd' must be one number, found"):
            writer.write(1, {"fine": 1.0, "loss/odd": value})
        with pytest.raises(ValueError, match='may not be called "step"'):
            writer.write(1, {"step": 1.0})
    assert read_rows(tmp_path) == []


def test_disabled_leaves_no_trace(tmp_path):
    with MetricsWriter(tmp_path / "run", enabled=False, resume_step=3) as writer:
        writer.write(1, {"loss": "never looked at"})
    assert not (tmp_path / "run").exists()


def write_steps(workdir, steps, **options):
    with MetricsWriter(workdir, **options) as writer:
        for step in steps:
            writer.write(step, {"loss": float(step)})


def test_resume_drops_later_rows(tmp_path):
    write_steps(tmp_path, range(1, 8))
    write_steps(tmp_path, range(5, 7), resume_step=4)
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_resume_hides_later_scalars_in_tensorboard(tmp_path):
    write_steps(tmp_path, range(5, 7), resume_step=4)
    starts = [e.step for e in read_events(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts == [5]


def test_a_row_of_the_step_that_a_run_resumes_from_is_not_written_again(tmp_path):
    """An evaluation is repeated after a kill; that of other metrics is another row."""
    scores = {"i2v/map": 1.5, "v2i/map": 2.5}
    with MetricsWriter(tmp_path) as writer:
        writer.write(4, {"loss": 4.0})
        writer.write(4, scores)
    with MetricsWriter(tmp_path, resume_step=4) as writer:
        writer.write(4, {**scores, "i2v/map": 1.6})
        writer.write(4, {"v2i/minp": 3.0})
        writer.write(5, {"loss": 5.0})
        writer.write(8, scores)
    assert read_rows(tmp_path) == [
        {"step": 4, "loss": 4.0},
        {"step": 4, **scores},
        {"step": 4, "v2i/minp": 3.0},
        {"step": 5, "loss": 5.0},
        {"step": 8, **scores},
    ]


def test_without_resume_step_rows_are_appended(tmp_path):
    write_steps(tmp_path, [1, 2])
    write_steps(tmp_path, [2, 3])
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2, 2, 3]


@settings(deadline=None, max_examples=30)
@given(killed_at=st.integers(0, 100), resume_step=st.none() | st.integers(0, 6))
def test_a_file_cut_anywhere_keeps_its_whole_rows(tmp_path_factory, killed_at, resume_step):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    text = "".join(json.dumps({"step": s, "loss": s / 3}) + "\n" for s in range(1, 5))
    path.write_text(text[:killed_at])
    whole = [
        s
        for s, end in enumerate(np.cumsum([len(x) for x in text.splitlines()]), start=1)
        if end + s - 1 <= killed_at
    ]
    metrics._drop_rows(path, resume_step)
    kept = [s for s in whole if resume_step is None or s <= resume_step]
    assert [row["step"] for row in read_rows(path.parent)] == kept
    assert not path.read_text() or path.read_text().endswith("\n")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        *(
            ("", ""),
            ("loss 3", ""),
            ("[1]", ""),
            ("{" * 100_000, ""),
            ('{"step": 2, "step": 2}', "step"),
        ),
        *(('{"loss": 1.0}', "step"), ('{"step": null}', "step"), ('{"step": "2"}', "step")),
        *(('{"step": 2, "loss": "1"}', "loss"), ('{"step": 2, "loss": {}}', "loss")),
        *(('{"step": 2, "loss": true}', "loss"), ('{"step": 2, "loss": 1%s}' % ("0" * 400), "")),
    ],
)
def test_a_strange_row_is_named(tmp_path, line, key):
    path = tmp_path / "metrics.jsonl"
    for text in (f'{{"step": 1}}\n{line}\n{{"step": 3}}\n', f'{{"step": 1}}\n{line}\n'):
        path.write_text(text)
        for read in (lambda: MetricsWriter(tmp_path), lambda: metrics.read_rows(epath.Path(path))):
            with pytest.raises(InputError, match=rf"metrics\.jsonl, line 2: .*{key}"):
                read()
        assert path.read_text() == text


def test_rows_are_read_as_written_up_to_a_half_written_one(tmp_path):
    path = epath.Path(tmp_path / "metrics.jsonl")
    assert metrics.read_rows(path) == []
    path.write_text('{"step": 1, "a": 2}\n{"step": 2, "a": NaN}\n{"step": 3, "a"')
    first, second = metrics.read_rows(path)
    assert first == {"step": 1.0, "a": 2.0} and np.isnan(second["a"])
