"""Parts by name, of this repository and of others."""

import sys

import pytest

from data_pipelines.errors import InputError
from data_pipelines.parts import find_part

PARTS = {"one": object(), "two": object()}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A package outside the repository."""
    package = tmp_path / "elsewhere"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "good.py").write_text("def part():\n    return 7\npart.size = 3\n")
    (package / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "elsewhere"]:
        del sys.modules[name]


def test_a_key_of_the_dictionary():
    assert find_part(PARTS, "two", "config.part") is PARTS["two"]


def test_a_part_of_another_package(elsewhere):
    assert find_part(PARTS, "elsewhere.good:part", "config.part", needs=("size",))() == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("three", "config.part is 'three': use one, two, or package.module:object"),
        (
            "nowhere.at:all",
            r"cannot be imported \(ModuleNotFoundError: No module named 'nowhere'\)",
        ),
        ("elsewhere.good:other", "cannot be imported .AttributeError: .* has no attribute 'other'"),
        ("elsewhere.broken:part", r"cannot be imported \(ZeroDivisionError: division by zero\)"),
        ("elsewhere.good:", "cannot be imported"),
        (":part", "cannot be imported"),
        ("elsewhere.good:part", "it has no colour, weight$"),
    ],
)
def test_what_is_wrong_is_named(elsewhere, name, message):
    with pytest.raises(InputError, match=message) as raised:
        find_part(PARTS, name, "config.part", needs=("size", "colour", "weight"))
    assert "\n" not in str(raised.value)
