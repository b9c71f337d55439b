"""Names of people: which spellings are one name, and which names are refused."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io import names


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("alice", "alice"),
        (" alice\t", "alice"),
        ("alice\u00a0", "alice"),  # a space that does not break
        ("alice b", "alice b"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("\u1112\u1161\u11ab", "\ud55c"),  # a Korean syllable in its parts
        ("王小明", "王小明"),
        ("id7, a", "id7, a"),
        ("None", "None"),
    ],
)
def test_spellings_of_a_name(written, name):
    assert names.read_name(written, "a.csv:2") == name


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("", "empty"),
        (" \t", "empty"),
        ("al\0ice", "U+0000"),
        ("al\nice", "U+000A"),
        ("al\x1b[2Jice", "U+001B"),
        ("alice\u200b", "U+200B"),
        ("\ufeffalice", "U+FEFF"),
        ("al\u202eice", "U+202E"),
        ("al\u00a0ice", "U+00A0"),
        ("al\udcffice", "U+DCFF"),
    ],
)
def test_names_that_look_like_others_are_refused(written, found):
    with pytest.raises(InputError) as error:
        names.read_name(written, "a.csv:2")
    assert str(error.value).startswith("a.csv:2: ") and found in str(error.value)


@given(st.text())
def test_a_name_is_read_as_itself(text):
    try:
        name = names.read_name(text, "x")
    except InputError:
        return
    assert names.read_name(name, "x") == name
    for form in ("NFC", "NFD"):
        assert names.read_name(unicodedata.normalize(form, name), "x") == name


def test_unknown_in_any_case_is_nobody_and_said_once(capsys):
    written = {"Unknown": "a.csv:3", " UNKNOWN ": "a.csv:4", "alice": "a.csv:5", "unknowns": "b"}
    assert names.read_identities(written) == {
        "Unknown": schema.UNKNOWN,
        " UNKNOWN ": schema.UNKNOWN,
        "alice": "alice",
        "unknowns": "unknowns",
    }
    (line,) = capsys.readouterr().err.splitlines()
    assert "'Unknown'" in line and "' UNKNOWN '" in line and "a.csv:3" in line
    assert names.read_identities({"unknown": "a", "alice": "b"}) == {
        "unknown": "unknown",
        "alice": "alice",
    }
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "spelling",
    [
        "unknown/visible/door/Zo\u00eb",
        "unknown\\visible\\door\\Zo\u00eb",
        "./unknown/visible/door/Zoe\u0308/",
        ".\\unknown\\visible//door/Zo\u00eb ",
        "unknown/visible/./door /Zo\u00eb",
    ],
)
def test_spellings_of_a_path(spelling):
    assert names.path_key(spelling) == "unknown/visible/door/Zo\u00eb"


def test_other_paths_are_others():
    paths = ["a/b/c", "a/b/C", "a/c", "a/b/c.mp4", "../a/b/c", "a/bc", "b/a/c"]
    assert len({names.path_key(path) for path in paths}) == len(paths)
