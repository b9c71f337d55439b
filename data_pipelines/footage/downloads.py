"""Files of pretrained models: by name, downloaded once, or by path."""

import hashlib
import io
import json
import os
import pathlib
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlparse

from data_pipelines.errors import InputError, MissingPackageError
from data_pipelines.io import files
from data_pipelines.io.terminal import log

CACHE_VARIABLE = "STAR_JAX_CACHE"  # of the environment: the folder of downloaded models
_MAGIC = {".onnx": (0, b"\x08"), ".tflite": (4, b"TFL3")}  # offset and bytes of every such file
_MAX_BYTES = 2**31  # no ONNX file is larger


class Download(NamedTuple):
    """A published file of a model.

    Attributes:
      url: of the file, `.onnx` or `.tflite`, or of a `.zip` with one `.onnx` in it.
      license: of the weights, for the user to read.
      sha256: of the file at `url`; None if its publisher gives none.
    """

    url: str
    license: str
    sha256: str | None


def find_model(value: str, models: Mapping[str, Download], flag: str) -> pathlib.Path:
    """Returns the path of a model's file, which is downloaded if it is given by name.

    Downloads are kept in the user's cache folder, or in that of the variable STAR_JAX_CACHE. They
    must have the published SHA-256, or else that of the first download. A file in the cache that
    has changed is downloaded again.

    Args:
      value: one of the names of `models`, or a path.
      models: what can be downloaded, by name.
      flag: such as `--model`, for messages.

    Raises:
      InputError: it is neither a name nor a file, or the download fails; the cache stays as it was.
      MissingPackageError: pooch, which downloads, is not installed.
    """
    if value in models:
        return _fetch(value, models[value], flag)
    if not os.path.exists(value):
        raise InputError(
            f"{flag}={value}: no such file, nor the name of a model that can be downloaded "
            f"({', '.join(models)}); without a network, download one elsewhere and pass its file"
        )
    files.require_regular(value)
    return pathlib.Path(value)


def _fetch(name: str, download: Download, flag: str) -> pathlib.Path:
    try:
        import pooch
        import requests  # comes with pooch
    except ImportError as error:
        raise MissingPackageError(
            f'{flag}={name}: downloads need pooch: pip install -e ".[pose]"; or pass a file'
        ) from error
    folder = pathlib.Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("star_jax"))
    suffix = pathlib.PurePosixPath(urlparse(download.url).path).suffix
    model = folder / f"{name}{'.onnx' if suffix == '.zip' else suffix}"
    record = folder / f"{name}.json"
    found = _read_record(record, download)
    if model.is_file() and _sha256(model.read_bytes()) == found.get("model_sha256"):
        return model
    sha256 = download.sha256 or found.get("sha256")
    try:
        content = _download(download, sha256, folder)
        model_content = _only_onnx(content) if suffix == ".zip" else content
        start, magic = _MAGIC[model.suffix]
        if model_content[start : start + len(magic)] != magic:
            raise ValueError(f"not a file of the format {model.suffix}")
    except (ValueError, requests.RequestException) as error:
        reason = " ".join(str(error).rpartition("Caused by ")[2].split())[:300]
        unpack = ", unpack it" if suffix == ".zip" else ""
        changed = f"; if it was replaced there, remove {record}" if "sha256" in found else ""
        raise InputError(
            f"{flag}={name}: cannot download {download.url} ({reason}){changed}; download it "
            f"elsewhere{unpack} and pass the file, {flag}=FILE{model.suffix}"
        ) from error
    files.write_file(model, model_content)
    files.write_json(
        record,
        {
            "url": download.url,
            "license": download.license,
            "sha256": _sha256(content),
            "model_sha256": _sha256(model_content),
        },
    )
    return model


def _read_record(path: pathlib.Path, download: Download) -> dict[str, Any]:
    """Returns what is recorded of an earlier download from the same URL."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("url") == download.url else {}


def _download(download: Download, sha256: str | None, folder: pathlib.Path) -> bytes:
    """Returns the content at a URL, checked; leaves nothing in the folder."""
    import pooch

    log(f"downloading {download.url} (license: {download.license})")
    folder.mkdir(parents=True, exist_ok=True)
    get = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=2**16)
    with files.naming_full_disk(folder), tempfile.TemporaryDirectory(dir=folder) as partial:
        messages = pooch.get_logger()
        level = messages.level
        messages.setLevel("WARNING")
        try:
            path = pooch.retrieve(
                download.url,
                sha256 and f"sha256:{sha256}",
                fname="partial",
                path=partial,
                downloader=get,
            )
        finally:
            messages.setLevel(level)
        return pathlib.Path(path).read_bytes()


def _only_onnx(content: bytes) -> bytes:
    """Returns the content of the only .onnx file in an archive; extracts no paths."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = [item for item in archive.infolist() if item.filename.endswith(".onnx")]
            if len(found) != 1 or found[0].file_size > _MAX_BYTES:
                raise ValueError(f"it holds {len(found)} .onnx files; expected one, up to 2 GiB")
            return archive.read(found[0])
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # the last: encrypted, unknown
        raise ValueError(f"not a readable .zip file: {error}") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
