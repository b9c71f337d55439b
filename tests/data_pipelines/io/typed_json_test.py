"""JSON that must have certain keys and types."""

import json
from typing import Annotated, Any, TypedDict

import pytest

from data_pipelines.io.typed_json import Range, parse


class Inner(TypedDict, total=False):
    share: Annotated[float, Range(0, 1)]


class Outer(Inner):
    name: str
    ends: tuple[int, int]
    flags: dict[str, bool | str]
    parts: list[Inner]
    rest: Any


VALID = {
    **{"name": "a", "ends": [1, 2], "flags": {"x": True, "y": "no"}},
    **{"parts": [{"share": 0.5}, {}, {"other": []}], "rest": [None], "unknown": 3},
}


def test_what_fits_is_returned_as_it_is():
    assert parse(json.dumps(VALID).encode(), Outer) == VALID
    assert parse(b"\xef\xbb\xbf[1.5, 2]", list[float]) == [1.5, 2]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": None}, "name"),
        ({"name": 3}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"ends": [1]}, "ends"),
        ({"ends": [1, 2.0]}, r"ends\[1\]"),
        ({"ends": [1, True]}, r"ends\[1\]"),
        ({"ends": {"0": 1, "1": 2}}, "ends"),
        ({"flags": {"x": 1}}, r"flags\.x"),
        ({"flags": {"\ud800": True}}, "key of flags"),
        ({"parts": [{}, {"share": 1.5}]}, r"parts\[1\]\.share"),
        ({"parts": [{"share": float("nan")}]}, r"parts\[0\]\.share"),
        ({"parts": [{"share": "1"}]}, r"parts\[0\]\.share"),
        ({"share": 10**400}, "share"),
        ({"parts": [[]]}, r"parts\[0\]"),
    ],
)
def test_the_key_of_a_wrong_value_is_named(change, key):
    with pytest.raises(ValueError, match=f"^{'a ' if 'key of' in key else ''}{key} "):
        parse(json.dumps({**VALID, **change}).encode(), Outer)


@pytest.mark.parametrize("name", sorted(Outer.__required_keys__))
def test_a_missing_key_is_named(name):
    content = {key: value for key, value in VALID.items() if key != name}
    with pytest.raises(ValueError, match=f"^{name} is missing"):
        parse(json.dumps(content).encode(), Outer)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"[" * 100_000, "deep"),
        (b"[" * 51 + b"]" * 51, "deep"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "'b'"),
        (b"\xff", "decode"),
        (b"", "line 1"),
        (b"1" * 5000, "digits"),
    ],
)
def test_what_is_no_json_or_has_no_single_meaning_is_refused(text, named):
    with pytest.raises(ValueError, match=named):
        parse(text, Any)
