"""From config files, flags and stored configs to a `Config`, checked key by key and as a whole."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from data_pipelines.errors import InputError
from data_pipelines.parts import is_path
from star_jax.config.experiment import KEYS, OPTIONS, SECTIONS, Config
from star_jax.config.values import Values, shown

OPTION = Values("a value that the component accepts", lambda value: True)

DISTURBED_LOSSES = ("disturbed_identity", "defense")
SKELETON_LOSSES = ("modality_consistency", "skeleton_consistency")


def default_config() -> ml_collections.ConfigDict:
    """Returns the config of all keys at their defaults: STAR on HITSZ-VCM, the published recipe.

    It is mutable: change values, and pass it to `star_jax.train`.
    """
    config = ml_collections.ConfigDict(Config().to_dict())
    config.model.num_identities = config_dict.placeholder(int)
    return config


def as_config(found: Config | ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
    """Returns a checked config.

    Lists become tuples, as in a config read from JSON, and integers become floats where the default
    is one.

    Args:
      found: a whole config, as in `configs/`.

    Raises:
      InputError: a key is missing or unknown, or has an invalid value; names the key, the value
        and what to use.
    """
    values = dict(entries(plain(found)))
    check_names(values)
    top = {key: _checked(key, value) for key, value in values.items() if "." not in key}
    config = Config(**top, **{name: _section(name, values) for name in SECTIONS})
    check_together(config)
    return config


def as_section(name: str, found: Any) -> Any:
    """Returns a checked section of a config, such as `model`; raises as `as_config` does."""
    values = dict(entries(plain(found), name))
    check_names(values, name)
    return _section(name, values)


def with_values(
    found: Config | ml_collections.ConfigDict | Mapping[str, Any], values: Mapping[str, Any]
) -> Config:
    """Returns a checked config with other values.

    Args:
      found: a whole config.
      values: by key, such as `"optim.lr"`, or `"model.backbone_options.width"` for an option.

    Raises:
      InputError: as `as_config`, or an option is of something that is no section.
    """
    config = plain(found)
    for key, value in sorted(values.items()):  # options after the section that holds them
        *sections, name = key.split(".")
        section = config
        for depth, part in enumerate(sections, 1):
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                path = ".".join(sections[:depth])
                raise InputError(f"config.{path} is {shown(section)}: use a section")
        section[name] = plain(value)
    return as_config(config)


def plain(value: Any) -> Any:
    """Returns a copy of a config or value: nested dictionaries, and tuples for lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        return {name: plain(_value_at(value, name)) for name in value}
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def _value_at(section: Any, name: str) -> Any:
    try:
        return section[name]
    except config_dict.RequiredValueError:  # a placeholder that nothing has replaced
        return None


def _section(name: str, values: Mapping[str, Any]) -> Any:
    keys = [key for key in KEYS if key.startswith(f"{name}.")]
    return SECTIONS[name](**{key.partition(".")[2]: _checked(key, values[key]) for key in keys})


def _checked(key: str, value: Any) -> Any:
    allowed, _, default = KEYS[key]
    if not allowed.include(value):
        raise InputError(f"config.{key} is {shown(value)}: use {allowed.text}")
    return float(value) if isinstance(default, float) else value


def check_names(found: Mapping[str, Any], section: str = "") -> None:
    """Checks that there are all keys of a section and no others; "" stands for all sections.

    Args:
      found: values by key.
      section: its name.
    """
    for key, value in found.items():
        if key in SECTIONS:
            raise InputError(f"config.{key} is {shown(value)}: use {keys_of(key)}")
        if key not in KEYS:
            raise InputError(unknown(key))
    for key, (values, *_) in KEYS.items():
        if key.startswith(f"{section}." if section else "") and key not in found:
            raise InputError(f"config.{key} is missing: use {values.text}")


def check_together(config: Config) -> None:
    """Checks the constraints between keys, each of which is valid by itself."""
    size, padding = config.data.frame_size, config.augment.padding
    if padding >= min(size):
        raise InputError(
            f"config.augment.padding is {padding}: use less than {min(size)}, the smaller of "
            f"height and width in config.data.frame_size, which is {size}"
        )
    parts = config.augment.parts
    for one, next_one in (
        ("crop_and_flip", "normalize"),
        ("normalize", "erasing"),
        ("normalize", "style"),
    ):
        if {one, next_one} <= {*parts} and parts.index(one) > parts.index(next_one):
            raise InputError(f"config.augment.parts is {parts}: use {one!r} before {next_one!r}")
    if config.eval.flip and config.model.keypoints == "pixels":
        raise InputError(
            "config.eval.flip is True: use False with config.model.keypoints 'pixels', which are "
            "pixels of the stored frame, so that they cannot be mirrored in the resized one"
        )
    if config.init.backbone and config.init.checkpoint:
        raise InputError(
            f"config.init.backbone is {shown(config.init.backbone)} and config.init.checkpoint is "
            f"{shown(config.init.checkpoint)}: use one of them; a network has its own backbone"
        )
    identities, batch = config.model.num_identities, config.data.identities_per_batch
    if identities is not None and batch > identities:
        raise InputError(
            f"config.data.identities_per_batch is {batch}: use at most {identities}, which is "
            "config.model.num_identities"
        )
    weights = dataclasses.asdict(config.losses)
    extra = weights.pop("extra")
    computed = list(weights)
    if not config.augment.style:
        computed = [name for name in computed if name not in DISTURBED_LOSSES]
    pooling = config.model.pooling
    if config.model.guidance == "none" and pooling != "guided" and not is_path(pooling):
        computed = [name for name in computed if name not in SKELETON_LOSSES]
    if not any([weights[name] for name in computed] + [weight for _, weight in extra]):
        raise InputError(
            f"config.losses is 0 for {', '.join(computed)}: use a number above 0 for one of them "
            f"(config.model.guidance is {config.model.guidance!r}, config.model.pooling is "
            f"{config.model.pooling!r} and config.augment.style is {config.augment.style}, so that "
            "no other losses are computed)"
        )


def check_training(config: Config) -> None:
    """Checks the constraints between keys for training; networks from before them stay usable."""
    if config.augment.move_keypoints and config.model.keypoints == "pixels":
        raise InputError(
            "config.augment.move_keypoints is True: use False with config.model.keypoints "
            "'pixels', which are pixels of the stored frame, so that they cannot follow those of "
            "the resized one"
        )


def entries(config: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the keys of a section, prefixed with its name and a dot, and their values.

    Args:
      config: nested dictionaries.
      section: the section that they are of; "" stands for the whole config.
    """
    for name, value in config.items():
        key = f"{section}.{name}" if section else str(name)
        if key in SECTIONS and isinstance(value, Mapping):
            yield from entries(value, key)
        else:
            yield key, value


def values_of(key: str) -> Values | None:
    """Returns the allowed values of a key, or of a component's option; None if there is none."""
    if key in KEYS:
        return KEYS[key].values
    return OPTION if key.rpartition(".")[0] in OPTIONS else None


def unknown(key: str) -> str:
    """Returns the error message for a key that does not exist, or is a section of keys."""
    if key in SECTIONS:
        return f"config.{key} is {keys_of(key)}"

    def close(cutoff: float) -> list[str]:
        return difflib.get_close_matches(key, KEYS, n=1, cutoff=cutoff)

    name = key.rpartition(".")[2].replace("_", " ")
    described = [known for known, (_, meaning, _) in KEYS.items() if name in meaning.lower()]
    nearest = close(0.75) or (described if " " in name else []) or close(0.6)
    hint = f"did you mean config.{nearest[0]}? " if nearest else ""
    return f"config.{key} does not exist: {hint}docs/config.md lists all keys"


def keys_of(section: str) -> str:
    """Returns the description of a section and its keys for an error message."""
    names = [key.rpartition(".")[2] for key in KEYS if key.rpartition(".")[0] == section]
    return f"a section with the keys {', '.join(names)}"
