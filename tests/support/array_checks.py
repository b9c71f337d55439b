"""What checks the arrays of every call in the tests: beartype, on jaxtyping's annotations alone.

mypy checks all other annotations, and some of them cannot be checked in a running program.
"""

import functools
import inspect
import operator
import types
import typing

import jax
from beartype import beartype
from jaxtyping import AbstractArray


def checked(function):
    """Returns the function with a check of those arguments and results that are arrays."""
    hints = {name: hint for name, hint in function.__annotations__.items() if _has_arrays(hint)}
    if not hints:
        return function
    function.__annotations__ = {name: _of_numpy_too(hint) for name, hint in hints.items()}
    checking = beartype(function)
    if function.__name__ != "__init__":
        return checking

    def initialize(self, *args, **kwargs):
        # JAX maps its trees to trees of shapes, shardings and so on.
        is_tree = hasattr(type(self), "_flax_dataclass")
        return (function if is_tree else checking)(self, *args, **kwargs)

    return initialize


def _has_arrays(hint):
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(map(_has_arrays, typing.get_args(hint)))


def _of_numpy_too(hint):
    """Returns the hint of JAX arrays that may also be NumPy's: given those, much returns those."""
    if inspect.isclass(hint) and issubclass(hint, AbstractArray) and hint.array_type is jax.Array:
        return hint.dtype[typing.Any, hint.dim_str]
    parts = [_of_numpy_too(part) for part in typing.get_args(hint)]
    if isinstance(hint, types.UnionType):
        return functools.reduce(operator.or_, parts)
    return tuple[*parts] if typing.get_origin(hint) is tuple else hint
