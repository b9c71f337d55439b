"""Where a run's numbers go: a file of JSON lines, and TensorBoard."""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import UInt8
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import image

from data_pipelines.errors import InputError
from data_pipelines.io import typed_json
from data_pipelines.io.files import naming_full_disk, read_file, write_file
from data_pipelines.io.remote import is_remote, locate


class MetricsWriter:
    """Writes the metrics of a run, one row per step.

    `<workdir>/metrics.jsonl` has one JSON object per line: `step` and the metrics by name.
    `<workdir>/tensorboard` has the same values as TensorBoard scalars, and the pictures. Use as a
    context manager.

    Files at a URL cannot be appended to. They are written to a temporary folder instead, and
    `upload` and `close` copy them.

    Args:
      workdir: folder of the run, created if missing, or its URL.
      enabled: False writes nothing, for all processes except process 0.
      resume_step: the step that the run resumes from. Rows of later steps, left behind by an
        interrupted run, are dropped, and those of this step are not written again. None keeps all
        rows.

    Raises:
      InputError: a line of metrics.jsonl, other than a half-written last one, is not a row.
      OSError: a file cannot be written, for instance because the disk is full; names the file.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        enabled: bool = True,
        resume_step: int | None = None,
    ):
        self._enabled = enabled
        if not enabled:
            return
        path = locate(workdir) / "metrics.jsonl"
        self._written = _drop_rows(path, resume_step) if path.exists() else set()
        self._resume_step = resume_step
        self._address = path.parent if is_remote(workdir) else None
        self._folder = Path(tempfile.mkdtemp(prefix="star_jax_") if self._address else workdir)
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._address and path.exists():
            path.copy(self._folder / path.name)
        self._path = self._folder / path.name
        self._file = self._path.open("a", encoding="utf-8")
        folder = self._folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Not SummaryWriter, whose thread ends on a full disk; then the run would wait for it.
        self._tensorboard = EventsWriter(str(folder / "events"))
        if resume_step is not None:  # TensorBoard hides later events of an interrupted run
            started = SessionLog(status=SessionLog.START)
            self._add_event(Event(step=resume_step + 1, session_log=started))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the metrics of a step: numbers or arrays of rank 0, as floats.

        Nothing is written if the step is the one that the run resumes from and there is a row of
        these metrics.

        Raises:
          ValueError: a value is not a single number, or a metric is called "step".
        """
        if not self._enabled:
            return
        if "step" in metrics:
            raise ValueError(
                'a metric may not be called "step", which is the key of the row\'s step'
            )
        row = {name: _as_float(name, value) for name, value in metrics.items()}
        if step == self._resume_step and {"step", *row} in self._written:
            return
        with naming_full_disk(self._path):
            self._file.write(json.dumps({"step": int(step), **row}) + "\n")
            self._file.flush()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items()]
        self._add_event(Event(step=int(step), summary=Summary(value=values)))

    def write_pictures(self, step: int, pictures: Mapping[str, UInt8[np.ndarray, "H W 3"]]) -> None:
        """Adds RGB pictures of a step to TensorBoard, by name."""
        if self._enabled:
            for name, picture in pictures.items():
                self._add_event(Event(step=step, summary=image(name, picture, dataformats="HWC")))

    def _add_event(self, event: Event) -> None:
        event.wall_time = time.time()
        with naming_full_disk(self._folder / "tensorboard"):
            self._tensorboard.write_event(event)
            self._tensorboard.flush()

    def upload(self) -> None:
        """Copies the files to the workdir if that is at a URL.

        Calling it before each checkpoint suffices: resuming drops later rows anyway.
        """
        if self._enabled and self._address:
            for path in self._folder.rglob("*"):
                if path.is_file():
                    write_file(self._address / path.relative_to(self._folder), path.read_bytes())

    def close(self) -> None:
        """Closes the files, and uploads them to a URL."""
        if self._enabled:
            with naming_full_disk(self._path):
                self._file.close()
            with naming_full_disk(self._folder / "tensorboard"):
                self._tensorboard.close()
            self.upload()
            if self._address:
                shutil.rmtree(self._folder)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # Do not let a failure to write the last rows hide the error that ended the run.
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self.close()


def _as_float(name: str, value: Any) -> float:
    array = np.asarray(value)
    is_number = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(
        array.dtype, jnp.integer
    )
    if array.ndim or not is_number:
        raise ValueError(
            f"metric {name!r} must be one number, found {array.dtype} of shape {array.shape}"
        )
    return float(array)


def read_rows(path: epath.Path) -> list[dict[str, float]]:
    """Returns the rows of a file of metrics; [] without one.

    Raises:
      InputError: a line, other than a half-written last one, is not a row; names the key.
    """
    return [row for _, row in _lines_and_rows(path)] if path.exists() else []


def _lines_and_rows(path: epath.Path) -> list[tuple[bytes, dict[str, float]]]:
    lines = read_file(path).splitlines(keepends=True)
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append((line.rstrip(), _row(line)))
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break  # half-written
            raise InputError(f"{path}, line {number}: not a row of metrics ({error})") from error
    return found


def _row(line: bytes) -> dict[str, float]:
    """Returns the numbers of a row, which may be NaN; raises a ValueError that names the key."""
    row = typed_json.parse(line, dict[str, Any])
    typed_json.check(row.get("step"), int, "step")
    for name, value in row.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} is {value!r:.60}, not a number")
    try:
        return {name: float(value) for name, value in row.items()}
    except OverflowError as error:
        raise ValueError(str(error)) from error


def _drop_rows(path: epath.Path, resume_step: int | None) -> set[frozenset[str]]:
    """Drops a half-written last line and the rows after `resume_step`, atomically.

    Returns:
      The names of the metrics of each row of that step.
    """
    kept = [
        (line, row)
        for line, row in _lines_and_rows(path)
        if resume_step is None or row["step"] <= resume_step
    ]
    write_file(path, b"".join(line + b"\n" for line, _ in kept))
    return {frozenset(row) for _, row in kept if row["step"] == resume_step}
