"""Files of tracklet embeddings: what each row is, and how it was computed."""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import zipfile
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float32, Int32, Shaped

from data_pipelines.errors import InputError
from data_pipelines.io.files import refuse_stand_in, write_file
from data_pipelines.io.tables import csv_file
from data_pipelines.io.terminal import log
from data_pipelines.schema import MODALITIES
from star_jax.network import Network
from star_jax.training import run_files

_FORMAT = "star_jax embeddings 4"
_COLUMNS = ("identities", "cameras", "modalities", "rows", "num_frames", "first_frames")
_HEADER = ("identity", "camera", "modality", "row", "frames", "first_frame")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What embeddings are of, and how they were computed; compared by everyone who reads them.

    Attributes:
      weights: SHA-256 of the network's weights (`Network.checksum`).
      config: SHA-256 of the network's config without `eval` (`config_hash`).
      step: of the checkpoint.
      dataset: fingerprint of the dataset (`reading.fingerprint`).
      split: the split of the dataset.
      clips: which clips of a tracklet, see `config.eval.clips`.
      clip_length: frames of a clip.
      sampling: see `config.data.sampling`.
      flip: whether mirror images were embedded, too.
      corruption: what was done to the skeletons, as in `corruption.parse`.
    """

    weights: str
    config: str
    step: int
    dataset: str
    split: str
    clips: str
    clip_length: int
    sampling: str
    flip: bool
    corruption: str

    def differences(self, other: "Provenance") -> list[str]:
        """Returns in what embeddings differ but for the tracklets they are of, as texts."""
        return [
            f"{name} is {getattr(self, name)!s:.12} and {getattr(other, name)!s:.12}"
            for name in _TYPES
            if name not in ("dataset", "split") and getattr(self, name) != getattr(other, name)
        ]


_TYPES = {field.name: field.type for field in dataclasses.fields(Provenance)}


def provenance_of(
    network: Network, dataset: str, split: str, clips: str | None = None
) -> Provenance:
    """Returns the provenance of embeddings of a dataset, named by its fingerprint.

    Args:
      network: as returned by `load_weights`.
      dataset: fingerprint of the dataset.
      split: a split of the dataset.
      clips: a value of `config.eval.clips`; that of the network's config if None.
    """
    config = network.config
    return Provenance(
        weights=network.checksum,
        config=config_hash(config),
        step=int(network.step),
        dataset=dataset,
        split=split,
        clips=clips or config.eval.clips,
        clip_length=config.data.clip_length,
        sampling=config.data.sampling,
        flip=config.eval.flip,
        corruption="none",
    )


def config_hash(config: ml_collections.ConfigDict) -> str:
    """Returns the SHA-256 of a config without `eval`, of which a provenance names what matters."""
    found = run_files.as_json(config)
    found.pop("eval", None)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


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
      provenance: what they are of, and how they were computed.
    """

    embeddings: Float32[np.ndarray, "n C"]
    identities: Shaped[np.ndarray, " n"]
    cameras: Shaped[np.ndarray, " n"]
    modalities: Shaped[np.ndarray, " n"]
    rows: Int32[np.ndarray, " n"]
    num_frames: Int32[np.ndarray, " n"]
    first_frames: Shaped[np.ndarray, " n"]
    dataset_dir: str
    provenance: Provenance


_FIELDS = dataclasses.fields(Embeddings)
_TEXTS = ("identities", "cameras", "modalities", "first_frames", "dataset_dir", "provenance")


def save(output: str | os.PathLike[str], embeddings: Embeddings) -> tuple[pathlib.Path, ...]:
    """Writes `<output>.npz`, and `<output>.csv` with one row per tracklet, each file atomically.

    Returns:
      The paths of both files.

    Raises:
      InputError: a name cannot be written as UTF-8.
    """
    for name in _COLUMNS:
        _require_text(output, name, getattr(embeddings, name))
    arrays = io.BytesIO()
    fields = {field.name: getattr(embeddings, field.name) for field in _FIELDS}
    fields["provenance"] = json.dumps(dataclasses.asdict(embeddings.provenance))
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
        fields, form = {}, ""
        # `save` does not compress: an archive larger unpacked than packed could exhaust the memory.
        if sorted(names) == sorted(expected) and unpacked <= os.path.getsize(path):
            with np.load(path, allow_pickle=False) as file:
                fields = {name: np.asarray(file[name]) for name in expected}
            form = fields.pop("format").tolist()
    except Exception as error:  # zipfile and NumPy raise many kinds of errors on a corrupt archive
        raise InputError(f"{path}: not a readable .npz of embeddings ({error})") from error
    if form != _FORMAT:
        held = ascii(", ".join(sorted(names)))[1:300].rstrip("'") or "nothing"
        raise InputError(
            f"{path}: holds {held} ({unpacked} bytes), not the embeddings with their provenance "
            "that this version of launch/embed.py writes; embed the dataset again"
        )
    _check(path, fields)
    found: dict[str, Any] = {
        name: values if values.ndim else values.item() for name, values in fields.items()
    }
    return Embeddings(**found | {"provenance": _parse_provenance(path, found["provenance"])})


def holds(path: pathlib.Path, provenance: Provenance) -> bool:
    """Returns whether a file holds embeddings of a provenance; logs why not if there is a file."""
    try:
        found = load(path).provenance
    except FileNotFoundError:
        return False
    except InputError as error:
        log(f"embedding again: {error}")
        return False
    if found != provenance:
        log(f"embedding again: {path} holds embeddings of another network, dataset, split or clips")
    return found == provenance


def _check(path: str | os.PathLike[str], fields: dict[str, np.ndarray]) -> None:
    vectors = fields["embeddings"]
    if vectors.dtype != np.float32 or vectors.ndim != 2 or not vectors.size:
        raise InputError(
            f"{path}: embeddings are {vectors.dtype}{list(vectors.shape)}, not float32[n, C]"
        )
    if not (np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-2).all():  # also catches NaN
        raise InputError(f"{path}: embeddings must have length 1")
    for name in sorted(fields.keys() - {"embeddings"}):
        kind = "U" if name in _TEXTS else "iu"
        shape = (len(vectors),) if name in _COLUMNS else ()
        values = fields[name]
        if values.dtype.kind not in kind or values.shape != shape:
            raise InputError(
                f"{path}: {name} is {values.dtype}{list(values.shape)}, which does not fit "
                f"{len(vectors)} tracklets"
            )
        _require_text(path, name, values)
    strange = set(fields["modalities"].tolist()) - set(MODALITIES)
    if strange:
        raise InputError(f"{path}: modality {strange.pop()!r:.80}; known: {', '.join(MODALITIES)}")


def _require_text(path: str | os.PathLike[str], name: str, values: np.ndarray) -> None:
    """Raises an InputError if strings hold what UTF-8 cannot, as names of files may."""
    if values.dtype.kind == "U":
        try:
            "".join(values.ravel().tolist()).encode()
        except (ValueError, SystemError) as error:  # lone surrogates, numbers beyond Unicode
            raise InputError(
                f"{path}: {name} hold a name that is not Unicode ({error}); rename the files of "
                "the footage, and pack and embed it again"
            ) from error


def _parse_provenance(path: str | os.PathLike[str], text: str) -> Provenance:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or {key: type(found[key]) for key in found} != _TYPES:
        raise InputError(
            f"{path}: its provenance, {text!r:.80}, is not that of this version of star_jax; embed "
            "the dataset again"
        )
    return Provenance(**found)
