"""Files of tracklet embeddings: what each row is, and which network computed it."""

import dataclasses
import io
import os
import pathlib
import zipfile

import numpy as np
from jaxtyping import Float32, Int32, Shaped

from data_pipelines.errors import InputError
from data_pipelines.io.files import refuse_stand_in, write_file
from data_pipelines.io.tables import csv_file
from data_pipelines.schema import MODALITIES

_FORMAT = "star_jax embeddings 3"
_COLUMNS = ("identities", "cameras", "modalities", "rows", "num_frames", "first_frames")
_HEADER = ("identity", "camera", "modality", "row", "frames", "first_frame")


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Embeddings of the n tracklets of a packed split.

    Attributes:
      embeddings: float32[n, C], rows of length 1; row i is tracklet i of the split.
      identities: str[n], as in the source dataset.
      cameras: str[n], what users call the cameras.
      modalities: str[n], "visible" or "infrared".
      rows: int32[n], 1-based row in the source index.
      num_frames: int32[n].
      first_frames: str[n], the first frame's path below the source's root.
      dataset_dir: the packed dataset, an absolute path.
      dataset_fingerprint: fingerprint of the dataset (`reading.fingerprint`).
      split: the split of the dataset.
      step: step of the checkpoint.
      config_hash: SHA-256 of the checkpoint's config.
    """

    embeddings: Float32[np.ndarray, "n C"]
    identities: Shaped[np.ndarray, " n"]
    cameras: Shaped[np.ndarray, " n"]
    modalities: Shaped[np.ndarray, " n"]
    rows: Int32[np.ndarray, " n"]
    num_frames: Int32[np.ndarray, " n"]
    first_frames: Shaped[np.ndarray, " n"]
    dataset_dir: str
    dataset_fingerprint: str
    split: str
    step: int
    config_hash: str


_FIELDS = dataclasses.fields(Embeddings)
_TEXTS = (
    *("identities", "cameras", "modalities", "first_frames"),
    *("dataset_dir", "dataset_fingerprint", "split", "config_hash"),
)


def save(output: str | os.PathLike[str], embeddings: Embeddings) -> tuple[pathlib.Path, ...]:
    """Writes `<output>.npz`, and `<output>.csv` with one row per tracklet, each file atomically.

    Returns:
      The paths of both files.
    """
    arrays = io.BytesIO()
    fields = {field.name: getattr(embeddings, field.name) for field in _FIELDS}
    np.savez(arrays, format=_FORMAT, **fields)
    columns = [getattr(embeddings, name).tolist() for name in _COLUMNS]
    paths = tuple(pathlib.Path(f"{os.fspath(output)}.{ending}") for ending in ("npz", "csv"))
    write_file(paths[0], arrays.getvalue())
    write_file(paths[1], csv_file([_HEADER, *zip(*columns, strict=True)]))
    return paths


def load(path: str | os.PathLike[str]) -> Embeddings:
    """Reads a file written by `save`, without executing anything in it.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: the file is corrupt or has other content.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file; make it with launch/embed.py")
    refuse_stand_in(path)
    expected = {"format", *(field.name for field in _FIELDS)}
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member.filename.removesuffix(".npy") for member in archive.infolist()]
            unpacked = sum(member.file_size for member in archive.infolist())
        fields = {}
        # `save` does not compress: an archive larger unpacked than packed could exhaust the memory.
        if sorted(names) == sorted(expected) and unpacked <= os.path.getsize(path):
            with np.load(path, allow_pickle=False) as file:
                fields = {name: file[name] for name in expected}
    except Exception as error:  # zipfile and NumPy raise many kinds of errors on a corrupt archive
        raise InputError(f"{path}: not a readable .npz of embeddings ({error})") from error
    if not fields or str(fields.pop("format")) != _FORMAT:
        held = ascii(", ".join(sorted(names)))[1:300].rstrip("'") or "nothing"
        raise InputError(
            f"{path}: holds {held} ({unpacked} bytes), not the embeddings that this version of "
            "launch/embed.py writes; write the file again"
        )
    _check(path, fields)
    return Embeddings(
        **{name: values if values.ndim else values.item() for name, values in fields.items()}
    )


def _check(path: str | os.PathLike[str], fields: dict[str, np.ndarray]) -> None:
    vectors = fields["embeddings"]
    if vectors.dtype != np.float32 or vectors.ndim != 2 or not vectors.size:
        raise InputError(
            f"{path}: embeddings are {vectors.dtype}{list(vectors.shape)}, not float32[n, C]"
        )
    if not (np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-2).all():  # also catches NaN
        raise InputError(f"{path}: embeddings must have length 1")
    for name in fields.keys() - {"embeddings"}:
        kind = "U" if name in _TEXTS else "iu"
        shape = (len(vectors),) if name in _COLUMNS else ()
        values = fields[name]
        if values.dtype.kind not in kind or values.shape != shape:
            raise InputError(
                f"{path}: {name} is {values.dtype}{list(values.shape)}, which does not fit "
                f"{len(vectors)} tracklets"
            )
    strange = set(fields["modalities"].tolist()) - set(MODALITIES)
    if strange:
        raise InputError(f"{path}: modality {strange.pop()!r}; known: {', '.join(MODALITIES)}")
