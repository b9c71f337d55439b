"""Traces of training steps: which steps they hold, and where they are written."""

import gzip
import json

import jax
import pytest
from etils import epath

from star_jax.training.profiling import profiled


def traced_steps(folder):
    """Returns the steps in a trace, by the annotations that the loop below makes."""
    (path,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert list(folder.glob("plugins/profile/*/*.xplane.pb"))
    return {event["name"] for event in events if event.get("name", "").startswith("step ")}


@pytest.mark.parametrize(
    ("profile", "trained", "expected"),
    [(2, 6, {"step 3", "step 4"}), (3, 4, {"step 3", "step 4"}), (1, 2, None), (0, 6, None)],
)
def test_the_steps_after_the_compilation_are_traced(tmp_path, profile, trained, expected):
    folder = epath.Path(tmp_path / "run/profile")
    seen = []
    for step in profiled(iter(range(1, trained + 1)), profile, folder):
        with jax.profiler.TraceAnnotation(f"step {step}"):
            seen.append(step)
    assert seen == [*range(1, trained + 1)]
    if expected is None:
        assert not folder.exists()
    else:
        assert traced_steps(folder) == expected


def test_a_failing_step_ends_the_trace(tmp_path):
    batches = profiled(iter(range(9)), 5, epath.Path(tmp_path))
    for _ in range(4):
        next(batches)
    batches.close()  # as when training raises
    jax.profiler.start_trace(tmp_path / "next")  # refused while another runs
    jax.profiler.stop_trace()
