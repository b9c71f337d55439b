"""Reads JSON that must have the keys and types of a `TypedDict`."""

import collections
import json
import sys
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints, is_typeddict

_MOST_LEVELS = 50


class Range(NamedTuple):
    """Bounds of a number, as in `Annotated[float, Range(0, 100)]`."""

    low: float
    high: float = sys.float_info.max


def parse(text: bytes, kind: Any) -> Any:
    """Returns what a JSON text holds, checked as `check` does.

    Raises:
      ValueError: the text is not JSON, has a key twice or is nested too deeply, or as `check`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError(f"nested more than {_MOST_LEVELS} levels deep") from None
    level, depth = [value], 0
    while level:  # whoever walks through the value later may do so recursively
        depth += 1
        if depth > _MOST_LEVELS:
            raise ValueError(f"nested more than {_MOST_LEVELS} levels deep")
        level = [inner for outer in level for inner in _inside(outer)]
    check(value, kind)
    return value


def check(value: Any, kind: Any, key: str = "") -> None:
    """Raises a ValueError that names the key if a value is not of a type.

    Args:
      value: of JSON.
      kind: a `TypedDict`, whose values may have other keys as well; `dict[str, ...]`, `list[...]`,
        `tuple[...]` of a list of fixed length, `str`, `bool`, `int`, `float` (any finite number),
        a union, `Any`, or one of the numbers with a `Range`.
      key: of the value, for the message, with outer keys before it: `i2v.intervals.map`.
    """
    arguments = get_args(kind)
    if kind is Any:
        return
    if get_origin(kind) is UnionType:
        if not any(_is(value, each) for each in arguments):
            raise ValueError(_message(key, value, " or ".join(map(_name, arguments))))
    elif get_origin(kind) is Annotated:
        own, (low, high) = arguments
        check(value, own, key)
        if not low <= value <= high:
            raise ValueError(_message(key, value, f"a number from {low:g} to {high:g}"))
    elif not _has_type(value, kind):
        raise ValueError(_message(key, value, _name(kind)))
    elif is_typeddict(kind):
        for name, own in get_type_hints(kind, include_extras=True).items():
            if name in value:
                check(value[name], own, _join(key, name))
            elif name in kind.__required_keys__:
                raise ValueError(f"{_join(key, name)} is missing")
    elif get_origin(kind) is dict:
        for name, own in value.items():
            check(name, str, f"a key of {key or 'the object'}")
            check(own, arguments[1], _join(key, name))
    elif get_origin(kind) is list:
        for place, own in enumerate(value):
            check(own, arguments[0], f"{key}[{place}]")
    elif get_origin(kind) is tuple:
        if len(value) != len(arguments):
            raise ValueError(_message(key, value, f"{len(arguments)} values"))
        for place, (own, each) in enumerate(zip(value, arguments, strict=True)):
            check(own, each, f"{key}[{place}]")


def _is(value: Any, kind: Any) -> bool:
    try:
        check(value, kind)
    except ValueError:
        return False
    return True


def _has_type(value: Any, kind: Any) -> bool:
    """Returns whether a value is of a type, whatever it holds."""
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    if kind is str:
        return isinstance(value, str) and not any(
            "\ud800" <= letter <= "\udfff" for letter in value
        )
    outer = dict if is_typeddict(kind) else get_origin(kind) or kind
    return isinstance(value, list if outer is tuple else outer)


def _name(kind: Any) -> str:
    outer = dict if is_typeddict(kind) else get_origin(kind) or kind
    names = {dict: "an object", list: "a list", tuple: "a list", str: "text", bool: "true or false"}
    return {**names, int: "an integer", float: "a finite number"}[outer]


def _message(key: str, value: Any, expected: str) -> str:
    return f"{key or 'the content'} is {value!r:.60}, not {expected}"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _inside(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(name, _)] = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r} occurs twice in an object")
    return found
