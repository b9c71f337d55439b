"""Configs that are stored with networks: in archives, in checkpoints and in the folders of runs.

Such a config may come from anyone. As a plain dictionary it is data: it can be compared and shown.
Only `read_config` turns it into a `Config`, from which networks are built, so that no network
is built before the components that it names have been checked.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from data_pipelines.errors import InputError
from data_pipelines.parts import is_path, require_trusted
from star_jax.config import Config, as_config
from star_jax.config.checks import entries
from star_jax.config.experiment import ADDED_KEYS, KEYS
from star_jax.config.values import shown


def complete(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored config as parsed from JSON, with the `ADDED_KEYS` that it lacks."""
    config: dict[str, Any] = json.loads(json.dumps(stored))  # a copy, in which tuples are lists
    for key, value in json.loads(json.dumps(dict(ADDED_KEYS))).items():
        section, _, name = key.rpartition(".")
        part = config.get(section) if section else config
        if isinstance(part, dict):
            part.setdefault(name, value)
    return config


def read_config(stored: Any, where: str, trusted: Collection[str]) -> Config:
    """Returns the config that was stored with a network, whose components may then be created.

    Args:
      stored: the config as parsed from JSON.
      where: the file, for errors.
      trusted: packages whose components the config may name; see `parts.require_trusted`.

    Raises:
      InputError: it is not a config of this version, or names a component of a package that is not
        trusted.
    """
    config = as_config(parse_config(stored, where))
    for key, path in parts_elsewhere(config):
        require_trusted(path, f"{where}: config.{key}", trusted)
    return config


def parse_config(stored: Any, where: str) -> dict[str, Any]:
    """Returns a stored config as a dictionary, to compare or to show; creates no components.

    Raises:
      InputError: it is not a config of this version.
    """
    if not isinstance(stored, Mapping):
        raise InputError(f"{where}: its config is {shown(stored)}, not an object with sections")
    try:
        config = complete(stored)
        as_config(config)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # of strange names
        raise InputError(
            f"{where}: this version of star_jax cannot use its config ({error})"
        ) from error
    return config


def parts_elsewhere(config: Config) -> Iterator[tuple[str, str]]:
    """Yields the keys of a valid config that name components of other packages, and the paths."""
    for key, value in entries(config.to_dict()):
        if KEYS[key].values.name_parts:
            yield from ((key, text) for text in _texts(value) if is_path(text))


def _texts(value: Any) -> Iterator[str]:
    """Yields the texts in a value, which may be deeper than Python's stack."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            pending += [value[name] for name in value]
        elif isinstance(value, list | tuple):
            pending += value
