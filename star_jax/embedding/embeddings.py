"""Files of tracklet embeddings: what each row is, and how it was computed."""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np
from etils import epath
from jaxtyping import Float32, Shaped

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io.files import refuse_stand_in, require_regular, write_file
from data_pipelines.io.remote import locate
from data_pipelines.io.tables import csv_file
from data_pipelines.io.terminal import log
from data_pipelines.records.dataset import Split
from data_pipelines.skeletons.corruption import Corruption
from star_jax.config import Config
from star_jax.network import Network
from star_jax.runs import run_files

_FORMAT = "star_jax embeddings 5"
_HEADER = ("identity", "camera", "modality", "row", "frames", "first_frame")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What embeddings are of, and how they were computed; compared whenever they are read.

    Attributes:
      weights: SHA-256 of the network's weights (`Network.checksum`).
      network: SHA-256 of what the network computes from a clip, its config (`config_hash`).
      step: of the checkpoint.
      dataset: fingerprint of the dataset (`Dataset.fingerprint`).
      split: the split of the dataset.
      held_out: identities that the split leaves out, or consists of (`Split.held_out`).
      clips: which clips of a tracklet, see `config.eval.clips`.
      clip_length: frames of a clip.
      sampling: see `config.data.sampling`.
      flip: whether mirror images were embedded, too.
      corruption: what was done to the skeletons, as in `corruption.parse`.
    """

    weights: str
    network: str
    step: int
    dataset: str
    split: str
    held_out: int
    clips: str
    clip_length: int
    sampling: str
    flip: bool
    corruption: str

    def differences(self, other: "Provenance") -> list[str]:
        """Returns how embeddings differ apart from the tracklets that they are of, as texts."""
        return [
            f"{name} is {getattr(self, name)!s:.12} and {getattr(other, name)!s:.12}"
            for name in _TYPES
            if name not in ("dataset", "split", "held_out")
            and getattr(self, name) != getattr(other, name)
        ]


_KINDS: Mapping[str, type] = {  # of the arrays in a file
    **schema.COLUMN_TYPES,
    **{"vectors": np.float32, "first_frames": str, "dataset_dir": str, "provenance": str},
}
_TYPES = {field.name: field.type for field in dataclasses.fields(Provenance)}


def provenance_of(
    network: Network, split: Split, corruption: Corruption | None = None
) -> Provenance:
    """Returns the provenance of the embeddings of a split.

    Args:
      network: as returned by `load_weights`; its config says in which clips it embeds.
      split: of a dataset.
      corruption: what is done to the skeletons.
    """
    return provenance_by_names(
        network, split.dataset.fingerprint, split.name, split.held_out, str(corruption or "none")
    )


def provenance_by_names(
    network: Network, dataset: str, split: str, held_out: int = 0, corruption: str = "none"
) -> Provenance:
    """Returns the provenance of embeddings of a split that may not be packed."""
    config = network.config
    return Provenance(
        weights=network.checksum,
        network=config_hash(config),
        step=int(network.step),
        dataset=dataset,
        split=split,
        held_out=held_out,
        clips=config.eval.clips,
        clip_length=config.data.clip_length,
        sampling=config.data.sampling,
        flip=config.eval.flip,
        corruption=corruption,
    )


def config_hash(config: Config) -> str:
    """Returns the SHA-256 of those values of a config that a clip's embedding depends on."""
    found = run_files.as_json(config)
    read = {"model": found["model"], "frame_size": found["data"]["frame_size"]}
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Embeddings of the n tracklets of a split.

    Attributes:
      vectors: float32[n, C], rows of length 1; row i is tracklet i of the index.
      index: what is known of the tracklets.
      first_frames: str[n], the first frame's path below the source's root.
      dataset_dir: the packed dataset, or the folder of footage.
      provenance: what they are of, and how they were computed.
    """

    vectors: Float32[np.ndarray, "n C"]
    index: schema.Index
    first_frames: Shaped[np.ndarray, " n"]
    dataset_dir: str
    provenance: Provenance


def save(output: str | os.PathLike[str], embeddings: Embeddings) -> tuple[pathlib.Path, ...]:
    """Writes `<output>.npz`, and `<output>.csv` with one row per tracklet, each file atomically.

    Returns:
      The paths of both files.

    Raises:
      InputError: a name cannot be written as UTF-8.
    """
    index = embeddings.index
    columns = (
        *(index.identities, index.camera_names, np.array(schema.MODALITIES)[index.modalities]),
        *(index.rows, index.num_frames, embeddings.first_frames),
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    paths = tuple(pathlib.Path(f"{os.fspath(output)}.{ending}") for ending in ("npz", "csv"))
    write_file(paths[0], as_npz(embeddings, output))
    write_file(paths[1], csv_file([_HEADER, *rows]))
    return paths


def as_npz(embeddings: Embeddings, where: str | os.PathLike[str]) -> bytes:
    """Returns the content of a file that `load` reads.

    Args:
      embeddings: to write.
      where: the file, for errors.

    Raises:
      InputError: a name cannot be written as UTF-8.
    """
    fields = {
        **{name: getattr(embeddings.index, name) for name in schema.COLUMN_TYPES},
        "vectors": embeddings.vectors,
        "first_frames": embeddings.first_frames,
        "dataset_dir": np.array(embeddings.dataset_dir),
        "provenance": np.array(json.dumps(dataclasses.asdict(embeddings.provenance))),
    }
    for name, values in fields.items():
        _require_text(where, name, values)
    arrays = io.BytesIO()
    np.savez(arrays, format=_FORMAT, **fields)
    return arrays.getvalue()


def load(path: str | os.PathLike[str]) -> Embeddings:
    """Reads a file written by `save`, without executing anything in it.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: the file is corrupt or has other content.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file; make it with launch/embed.py")
    return parse(_read(path), path)


def _read(path: str | os.PathLike[str]) -> bytes:
    require_regular(path)
    content: bytes = locate(path).read_bytes()
    return content


def parse(content: bytes, path: str | os.PathLike[str]) -> Embeddings:
    """Returns what a file written by `save` holds.

    Args:
      content: of the file.
      path: of the file, for errors.

    Raises:
      InputError: the file is corrupt or has other content.
    """
    refuse_stand_in(path, content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [member.filename.removesuffix(".npy") for member in archive.infolist()]
            unpacked = sum(member.file_size for member in archive.infolist())
        fields, form = {}, ""
        # `save` does not compress: an archive larger unpacked than packed could exhaust the memory.
        if sorted(names) == sorted(("format", *_KINDS)) and unpacked <= len(content):
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                form = file["format"].tolist()
                fields = {name: np.asarray(file[name]) for name in _KINDS}
    except Exception as error:  # zipfile and NumPy raise many kinds of errors on a corrupt archive
        raise InputError(f"{path}: not a readable .npz of embeddings ({error})") from error
    if form != _FORMAT:
        held = ascii(", ".join(sorted(names)))[1:300].rstrip("'") or "nothing"
        raise InputError(
            f"{path}: holds {held} ({unpacked} bytes), not the embeddings with their provenance "
            "that this version of launch/embed.py writes; embed the dataset again"
        )
    _check(path, fields)
    return Embeddings(
        vectors=fields["vectors"],
        index=schema.Index(**{name: fields[name] for name in schema.COLUMN_TYPES}),
        first_frames=fields["first_frames"],
        dataset_dir=str(fields["dataset_dir"]),
        provenance=_parse_provenance(path, str(fields["provenance"])),
    )


def read_if_of(path: epath.Path, provenance: Provenance) -> bytes:
    """Returns the content of a file with embeddings of a provenance; logs why it is of no use.

    Returns:
      What `parse` reads; empty if there is no file, or it cannot be used.
    """
    if not path.exists():
        return b""
    try:
        content = _read(path)
        found = parse(content, path).provenance
    except InputError as error:
        log(f"embedding again: {error}")
        return b""
    if found != provenance:
        log(f"embedding again: {path} holds embeddings of another network, dataset, split or clips")
        return b""
    return content


def _check(path: str | os.PathLike[str], fields: dict[str, np.ndarray]) -> None:
    vectors = fields["vectors"]
    if vectors.dtype != np.float32 or vectors.ndim != 2 or not vectors.size:
        raise InputError(
            f"{path}: vectors are {vectors.dtype}{list(vectors.shape)}, not float32[n, C]"
        )
    if not (np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-2).all():  # also catches NaN
        raise InputError(f"{path}: vectors must have length 1")
    for name, kind in _KINDS.items():
        shape = () if name in ("dataset_dir", "provenance") else (len(vectors),)
        values = fields[name]
        if name != "vectors" and (np.dtype(kind).kind, shape) != (values.dtype.kind, values.shape):
            raise InputError(
                f"{path}: {name} is {values.dtype}{list(values.shape)}, which does not fit "
                f"{len(vectors)} tracklets"
            )
        _require_text(path, name, values)
    strange = set(fields["modalities"].tolist()) - {schema.VISIBLE, schema.INFRARED}
    if strange:
        raise InputError(
            f"{path}: modality {strange.pop()}; known: {schema.VISIBLE} (visible) "
            f"and {schema.INFRARED} (infrared)"
        )


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
