"""The manifest of a checkpoint: what was saved, to detect any other content."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.io import remote
from data_pipelines.io.files import require_regular
from star_jax.trees import named_leaves


class MisfitError(InputError):
    """Raised if a checkpoint belongs to a different network, optimizer or step."""


class DamagedError(InputError):
    """Raised if a checkpoint can be read, but differs from what was saved."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Describes the contents of a checkpoint and the run that saved it.

    Attributes:
      config: the experiment.
      dataset: fingerprint of the packed dataset that it was trained on.
      structure: dtype and shape of each array by path; "empty" for a node without arrays.
      checksums: checksum of each array by path.
      orbax: the version of Orbax that wrote it.
      step: of the state; None if an earlier version of star_jax saved it.
    """

    config: dict[str, Any]
    dataset: str
    structure: dict[str, str]
    checksums: dict[str, str]
    orbax: str = ocp.__version__
    step: int | None = None


def sealed(manifest: Manifest) -> dict[str, Any]:
    """Returns the manifest as JSON content, with its own checksum."""
    content = json.loads(json.dumps(dataclasses.asdict(manifest)))  # tuples become lists
    return {"manifest": content, "sha256": _sha256(content)}


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: epath.Path) -> Manifest:
    """Reads the manifest of a checkpoint from the file that Orbax writes for a JSON item.

    Raises:
      MisfitError: the folder is not a checkpoint, or is of another version of star_jax or another
        step.
      DamagedError: the manifest is damaged.
      InputError: there is a pipe or a device in the folder.
      OSError: it cannot be read.
    """
    if not remote.is_remote(folder):
        for item in pathlib.Path(folder).rglob("*"):
            if not item.is_dir():
                require_regular(item)
    path = folder / "manifest" / "metadata"
    with remote.naming_failures(folder):
        if exists := "manifest" in {item.name for item in folder.iterdir()}:
            listed = path.name in {item.name for item in path.parent.iterdir()}
            stored = path.read_bytes() if listed else b""
    if not exists:
        raise MisfitError(f"{folder}: not a checkpoint of this version of star_jax")
    try:
        found = json.loads(stored)
        content = found["manifest"]
        if found["sha256"] != _sha256(content):
            raise ValueError("its checksum does not match")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"{folder} is damaged (its manifest: {error})") from error
    try:
        manifest = Manifest(**content)
    except TypeError as error:
        raise MisfitError(f"{folder}: of another version of star_jax ({error})") from error
    if not _is_well_formed(manifest):
        raise MisfitError(f"{folder}: its manifest holds values that star_jax does not write")
    if manifest.step is not None:
        check_step(folder, manifest.step)
    return manifest


def _is_well_formed(manifest: Manifest) -> bool:
    maps = (manifest.structure, manifest.checksums)
    return (
        all(isinstance(content, dict) for content in (manifest.config, *maps))
        and all(isinstance(text, str) for content in maps for text in content.values())
        and isinstance(manifest.dataset, str)
        and isinstance(manifest.orbax, str)
        and isinstance(manifest.step, int | None)
    )


def check_step(folder: epath.Path, saved: int) -> None:
    """Raises a MisfitError if the name of a checkpoint's folder is not the step that it holds."""
    if saved != int(folder.name):
        raise MisfitError(
            f"{folder}: holds step {saved}, so that its folder was renamed; name it {saved} again "
            "or remove it; nothing was changed"
        )


def check_fit(folder: epath.Path, manifest: Manifest, items: Mapping[str, Any]) -> None:
    """Raises a MisfitError that names the arrays whose dtype or shape differs from `items`."""
    expected = structure_of(items) if items else {}
    saved = {
        path: text for path, text in manifest.structure.items() if path.partition("/")[0] in items
    }
    differences = [
        f"{path} is {saved.get(path, 'absent')}, not {expected.get(path, 'absent')}"
        for path in sorted(saved.keys() | expected)
        if saved.get(path) != expected.get(path)
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise MisfitError(
            f"{folder} belongs to a different network or optimizer: "
            f"{'; '.join(differences[:3])}{more}. "
            "Use the config and the code that it was trained with, or another workdir; nothing was "
            "changed"
        )


def structure_of(tree: Any) -> dict[str, str]:
    """Returns dtype and shape of each array by path, "empty" for nodes without arrays."""

    def empty(node: Any) -> bool:
        return isinstance(node, (tuple, dict, list)) and not node

    return {
        name: "empty" if empty(leaf) else f"{leaf.dtype}{list(leaf.shape)}"
        for name, leaf in named_leaves(tree, is_leaf=empty)
    }
