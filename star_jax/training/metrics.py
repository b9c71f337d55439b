"""Where a run's numbers go: a file of JSON lines, and TensorBoard."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from data_pipelines.errors import InputError
from data_pipelines.io.files import naming_full_disk, write_file
from data_pipelines.io.remote import is_remote, locate


class MetricsWriter:
    """Writes the metrics of a run, one row a step.

    `<workdir>/metrics.jsonl` takes one JSON object a line: `step` and the metrics by name.
    `<workdir>/tensorboard` takes the same numbers as TensorBoard scalars. Use as a context manager.

    At an address nothing can be appended to a file. There the files are written in a temporary
    folder, and `upload` and `close` copy them.

    Args:
      workdir: folder of the run, made if missing, or its address.
      enabled: False writes nothing, for all processes but the first.
      resume_step: the step that the run continues from. Rows of later steps, which an interrupted
        run left behind, are dropped. None keeps all rows.

    Raises:
      ValueError: metrics.jsonl holds a line, other than a half-written last one, that is no row.
      OSError: naming a file that cannot be written, for instance as the disk is full.
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
        if path.exists():
            _drop_rows(path, resume_step)
        self._address = path.parent if is_remote(workdir) else None
        self._folder = Path(tempfile.mkdtemp(prefix="star_jax_") if self._address else workdir)
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._address and path.exists():
            path.copy(self._folder / path.name)
        self._path = self._folder / path.name
        self._file = self._path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(
            str(self._folder / "tensorboard"),
            purge_step=None if resume_step is None else resume_step + 1,
        )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the metrics of a step: numbers or arrays of rank 0, written as floats.

        Raises:
          ValueError: a value is no single number, or a metric is called "step".
        """
        if not self._enabled:
            return
        if "step" in metrics:
            raise ValueError('a metric may not be called "step", the name of the row\'s step')
        row = {name: _as_float(name, value) for name, value in metrics.items()}
        with naming_full_disk(self._path):
            self._file.write(json.dumps({"step": int(step), **row}) + "\n")
            self._file.flush()
        for name, value in row.items():
            self._tensorboard.add_scalar(name, value, step)

    def upload(self) -> None:
        """Copies the files to the workdir, if that is at an address.

        Called before each checkpoint, it leaves nothing to lose: rows after it are dropped anyway.
        """
        if self._enabled and self._address:
            self._tensorboard.flush()
            for path in self._folder.rglob("*"):
                if path.is_file():
                    write_file(self._address / path.relative_to(self._folder), path.read_bytes())

    def close(self) -> None:
        """Closes the files."""
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
        # What ended the run is worth more than that its last rows could not be written.
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


def _drop_rows(path: epath.Path, resume_step: int | None) -> None:
    """Drops a half-written last line and the rows after `resume_step`, all or nothing."""
    lines = path.read_bytes().splitlines()
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            step = int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path}, line {number}: no row of metrics: {line[:80]!r}") from error
        if resume_step is None or step <= resume_step:
            kept.append(line + b"\n")
    write_file(path, b"".join(kept))
