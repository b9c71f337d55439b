"""Parts by name, of this repository and of others."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.errors import InputError
from data_pipelines.parts import find_part, require_trusted

ROOT = Path(__file__).parents[2]
PARTS = {"one": object(), "two": object()}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A package outside the repository; its folder lists which of its modules have run."""
    package = tmp_path / "elsewhere"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name, code in {
        "good": "def part():\n    return 7\n",
        "broken": "1 / 0\n",
        "ends": "import sys\nsys.exit(0)\n",
        "lazy": "def __getattr__(name):\n    open(__file__ + '.looked_up', 'w')\n    return int",
    }.items():
        (package / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "elsewhere"]:
        del sys.modules[name]


def find(name, include=callable):
    return find_part(PARTS, name, "config.part", kind="a function", include=include)


def test_a_key_of_the_dictionary():
    assert find("two") is PARTS["two"]


def test_a_part_of_another_package(elsewhere):
    assert find("elsewhere.good:part")() == 7


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("three", None),
        ("nowhere.at:all", ModuleNotFoundError),
        ("elsewhere.good:other", AttributeError),
        ("elsewhere.broken:part", ZeroDivisionError),
        ("elsewhere.ends:part", SystemExit),
        ("elsewhere.good:", None),
        (":part", None),
        ("..elsewhere:part", TypeError),
        ("elsewhere.good:part.__globals__", None),
        ("elsewhere.good:__name__", None),  # text, which is no function
    ],
)
def test_what_is_wrong_is_named(elsewhere, name, cause):
    with pytest.raises(InputError, match=rf"^config\.part is '{name}'") as raised:
        find(name)
    assert "\n" not in str(raised.value)
    assert type(raised.value.__cause__) is (cause or type(None))


def test_a_module_is_not_asked_for_what_it_does_not_hold(elsewhere):
    """Such a question would run its `__getattr__`."""
    with pytest.raises(InputError):
        find("elsewhere.lazy:anything")
    assert not list(elsewhere.glob("*.looked_up"))


def test_an_object_of_another_kind_is_not_called(elsewhere):
    called = []
    with pytest.raises(InputError, match=r"config\.part is 'subprocess:Popen'"):
        find("subprocess:Popen", include=lambda part: called.append(part) or False)
    assert called == [subprocess.Popen]


def test_a_part_that_ends_the_process_is_an_error(elsewhere):
    code = (
        "from launch import command\n"
        "from data_pipelines.parts import find_part\n"
        "command.run(lambda: find_part({}, 'elsewhere.ends:part', 'x', kind='', include=bool))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{elsewhere.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1 and result.stderr.startswith("error: x is 'elsewhere.ends:part'")


@pytest.mark.parametrize(
    ("trusted", "allowed"),
    [
        ((), ""),
        (("my_package",), "my_package:x my_package.sub:x my_package.sub.deep:x"),
        (("my_package.sub",), "my_package.sub:x my_package.sub.deep:x"),
        (("other", "my_package.sub.deep"), "my_package.sub.deep:x"),
        (["star_jax"], "star_jax.models:x"),
    ],
)
def test_only_modules_of_trusted_packages_pass(trusted, allowed):
    paths = (
        *("my_package:x", "my_package.sub:x", "my_package.sub.deep:x", "my_package_2:x"),
        *("my_packages.sub:x", "your.my_package:x", ".my_package:x", "star_jax.models:x"),
        *("subprocess:Popen", "os:system", "builtins:dict"),
    )
    before = set(sys.modules)
    for path in paths:
        if path in allowed.split():
            require_trusted(path, "star.safetensors: config.part", trusted)
        else:
            with pytest.raises(InputError, match=r"^star\.safetensors: config\.part") as raised:
                require_trusted(path, "star.safetensors: config.part", trusted)
            assert path in str(raised.value)
    assert set(sys.modules) == before


@pytest.mark.parametrize("value", ["hitsz_vcm", "any/other-cameras", "gs://bucket/x", None, 3])
def test_what_is_no_path_passes(value):
    require_trusted(value, "a file", ())


@pytest.mark.parametrize("trusted", ["my_package", ("",), ("os:system",), (3,), ("a..b",)])
def test_what_is_trusted_must_be_names_of_packages(trusted):
    with pytest.raises(InputError, match=r"^trusted is"):
        require_trusted("one", "a file", trusted)
