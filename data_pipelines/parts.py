"""Parts chosen by name: a key of a dictionary, or the path of an object outside the repository."""

import importlib
from collections.abc import Mapping
from typing import Any

from data_pipelines.errors import InputError


def find_part(
    parts: Mapping[str, Any], name: str, where: str, *, needs: tuple[str, ...] = ()
) -> Any:
    """Returns the part of a name.

    Args:
      parts: the parts of this repository by name.
      name: a key of `parts`, or `package.module:object` for a part of any installed package.
      where: the config key or flag that holds the name, for errors.
      needs: attributes that an object from outside must have.

    Raises:
      InputError: there is no such part, its module cannot be imported, or it lacks an attribute.
    """
    if name in parts:
        return parts[name]
    module_name, separator, attribute = name.partition(":")
    if not separator:
        raise InputError(
            f"{where} is {name!r}: use {', '.join(parts)}, or package.module:object for a part "
            "from another package"
        )
    try:
        part = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # importing runs code of others, which may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{where} is {name!r}: it cannot be imported ({reason})") from error
    missing = [need for need in needs if not hasattr(part, need)]
    if missing:
        raise InputError(f"{where} is {name!r}: it has no {', '.join(missing)}")
    return part
