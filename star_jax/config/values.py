"""Sets of values that a config key may have."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.parts import is_path

INT32_MAX = 2**31 - 1
FLOAT32_MAX = float(np.finfo(np.float32).max)


class Values(NamedTuple):
    """A set of values.

    Attributes:
      text: a description that completes the sentence "use ...".
      include: returns whether a value is in the set.
      name_parts: whether values may hold paths of components from other packages.
    """

    text: str
    include: Callable[[Any], bool]
    name_parts: bool = False


def flag() -> Values:
    """Returns the set of True and False; 0 and 1 are not in it."""
    return Values("True or False", lambda value: isinstance(value, bool))


def integer(least: int, most: int = INT32_MAX) -> Values:
    """Returns the set of integers in a range; bools and floats are not in it."""
    return Values(
        f"an integer {span(least, most)}",
        lambda value: (
            isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        ),
    )


def integers(
    least: int, most: int = INT32_MAX, *, count: int | None = None, ascending: bool = False
) -> Values:
    """Returns the set of tuples and lists of integers in a range.

    Args:
      least: smallest allowed integer.
      most: largest allowed integer.
      count: number of integers; any if None.
      ascending: whether each must be larger than the one before.
    """
    words = [str(count)] * (count is not None) + ["ascending"] * ascending
    one = integer(least, most)

    def include(value: Any) -> bool:
        if not isinstance(value, list | tuple) or not all(map(one.include, value)):
            return False
        in_order = not ascending or list(value) == sorted(set(value))
        return in_order and count in (None, len(value))

    return Values(f"a tuple of {' '.join(words)} integers {span(least, most)}", include)


def span(least: int, most: int) -> str:
    """Returns the description of a range of integers."""
    return f"of {least} or more" if most == INT32_MAX else f"from {least} to {most}"


def number(text: str, inside: Callable[[Any], Any]) -> Values:
    """Returns the set of finite floats and integers that are `inside` a range as float32."""

    def include(value: Any) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            # Neither infinite nor NaN; JAX converts integers to int32.
            and abs(value) <= (INT32_MAX if isinstance(value, int) else FLOAT32_MAX)
            and bool(inside(np.float32(value)))
        )

    return Values(text, include)


def text(least: int, most: int = 1000) -> Values:
    """Returns the set of printable strings whose length is in a range."""
    return Values(
        f"printable text of {least} to {most} characters",
        lambda value: (
            isinstance(value, str) and value.isprintable() and least <= len(value) <= most
        ),
    )


def choice(*names: str) -> Values:
    """Returns the set of the given strings."""
    *others, last = map(repr, names)
    return Values(
        f"{', '.join(others)} or {last}", lambda value: isinstance(value, str) and value in names
    )


def part() -> Values:
    """Returns the set of texts that may name a component: a name, or `package.module:object`.

    Whether the name exists is checked by `find_part`, whose error lists the names: the modules with
    the dictionaries of components import JAX.
    """
    return Values(
        "the name of a component or 'package.module:object'",
        lambda value: (
            is_path(value) or (isinstance(value, str) and bool(re.fullmatch(r"[\w/-]+", value)))
        ),
        name_parts=True,
    )


def options() -> Values:
    """Returns the set of config sections with a component's options, which the component checks."""
    return Values(
        "a section of options",
        lambda value: isinstance(value, Mapping),
        name_parts=True,  # an option of another package's component may be a component, too
    )


def optional(values: Values) -> Values:
    """Returns a set of values extended by None."""
    return values._replace(
        text=f"{values.text}, or None",
        include=lambda value: value is None or bool(values.include(value)),
    )


def weighted_parts() -> Values:
    """Returns the set of tuples of pairs: the path of a component elsewhere, and its weight."""

    def include(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(
            isinstance(pair, list | tuple)
            and len(pair) == 2
            and is_path(pair[0])
            and NOT_NEGATIVE.include(pair[1])
            for pair in value
        )

    return Values("a tuple of pairs ('package.module:object', weight)", include, name_parts=True)


def different_parts(*, including: str) -> Values:
    """Returns the set of tuples of different components, one of which is `including`."""
    one = part()

    def include(value: Any) -> bool:
        return (
            isinstance(value, list | tuple)
            and all(map(one.include, value))
            and len(set(value)) == len(value)
            and including in value
        )

    text = f"a tuple of different component names or 'package.module:object', with {including!r}"
    return Values(text, include, name_parts=True)


POSITIVE = number("a number above 0", lambda x: x > 0)
NOT_NEGATIVE = number("a number of 0 or more", lambda x: x >= 0)
BELOW_ONE = number("a number from 0 to below 1", lambda x: 0 <= x < 1)
PROBABILITY = number("a number from 0 to 1", lambda x: 0 <= x <= 1)


def shown(value: Any) -> str:
    """Returns a value as shown in an error message: one line of at most 100 characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."
