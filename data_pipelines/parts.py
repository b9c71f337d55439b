"""Components chosen by name: a key of a dictionary, or the path of an object in another package.

What a component must provide is declared by a class in the module with the dictionary: `Dataset` of
`data_pipelines.datasets`, `Sampler` of `data_pipelines.sampling`, `Augmentation` of
`star_jax.augment`, `Loss` of `star_jax.losses`, `Optimizer` and `Schedule` of `star_jax.optim`, and
`Rules` (of a protocol) of `star_jax.evaluation.protocols`. Components of a network are classes of
Flax modules, each a `Backbone`, `Guidance` or `Pooling` of `star_jax.models.interfaces`.

Importing a module runs its code, and so does creating a component. Names that a user writes (in a
config file, a flag or a call) are imported as they are. Names that a file holds (a config stored
with a network) first pass `require_trusted`, which imports nothing.
"""

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from data_pipelines.errors import InputError

Part = TypeVar("Part")


def is_path(name: Any) -> bool:
    """Returns whether a value is the path of a component in another package."""
    return isinstance(name, str) and re.fullmatch(r"[\w.]+:\w+", name) is not None


def require_trusted(name: Any, where: str, trusted: Collection[str]) -> None:
    """Raises an InputError if a value names a component of a package that is not trusted.

    Args:
      name: a value from a file; keys of dictionaries and anything that is not a path pass.
      where: the file, and the key that holds the value, for errors.
      trusted: names of packages, which stand for all of their modules, and of modules.
    """
    if isinstance(trusted, str) or not all(map(_is_module_name, trusted)):
        raise InputError(
            f"trusted is {trusted!r}: use names of packages, such as ('my_package',) in Python or "
            "--trusted=my_package"
        )
    if not is_path(name):
        return
    module = name.partition(":")[0]
    if not any(module == package or module.startswith(f"{package}.") for package in trusted):
        package = module.partition(".")[0]
        raise InputError(
            f"{where} is {name!r}: that would run code of another package; if you trust the file "
            f"and the package, allow it with --trusted={package}, or in Python with "
            f"trusted=({package!r},)"
        )


def _is_module_name(name: Any) -> bool:
    return isinstance(name, str) and all(map(str.isidentifier, name.split(".")))


def find_part(
    parts: Mapping[str, Part],
    name: str,
    where: str,
    *,
    kind: str,
    include: Callable[[Any], bool],
) -> Part:
    """Returns the component with a name.

    Args:
      parts: the components of this repository by name.
      name: a key of `parts`, or `package.module:object` for a component of any installed package.
      where: the config key or flag that holds the name, for errors.
      kind: what a component is, for errors, such as "a Flax module".
      include: returns whether an object of another package is such a component; must not call it.

    Raises:
      InputError: there is no such component, its module cannot be imported, or it is of another
        kind.
    """
    if name in parts:
        return parts[name]
    if not is_path(name):
        raise InputError(
            f"{where} is {name!r}: use {', '.join(parts)}, or package.module:object for a "
            "component from another package"
        )
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs code of others
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{where} is {name!r}: it cannot be imported ({reason})") from error
    try:
        part: Part = inspect.getattr_static(module, attribute)  # runs no `__getattr__`
    except AttributeError as error:
        raise InputError(
            f"{where} is {name!r}: {module_name} has no attribute {attribute!r}; name the module "
            "that defines it"
        ) from error
    if not include(part):
        raise InputError(f"{where} is {name!r}: use {kind}, not one of type {type(part).__name__}")
    return part


def is_function_of(part: Any, *arguments: str) -> bool:
    """Returns whether an object is a Python function that takes these arguments.

    It may be partial, compiled or decorated; nothing is called.
    """
    function = inspect.unwrap(part.func if isinstance(part, functools.partial) else part)
    if not inspect.isfunction(function):
        return False
    try:
        inspect.signature(part).bind(*arguments)
    except TypeError:
        return False
    return True
