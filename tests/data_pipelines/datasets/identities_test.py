"""`identities.csv`: which tracklets its rows are of, however their paths are written."""

import os
import unicodedata

import pytest

from data_pipelines.datasets.identities import read_identities_file
from data_pipelines.errors import InputError

PATHS = ["unknown/visible/door/Zo\u00eb", "unknown/infrared/yard/b.mp4", "alice/visible/door/c"]


def read(root, *rows, paths=PATHS):
    lines = "".join(f"{tracklet},{identity}\n" for tracklet, identity in rows)
    (root / "identities.csv").write_text(f"tracklet,identity\n{lines}", "utf-8")
    return read_identities_file(root, paths)


def test_without_the_file_nobody_is_named(tmp_path):
    assert read_identities_file(tmp_path, PATHS) == {}


@pytest.mark.parametrize(
    "spell",
    [
        lambda root, path: path,
        lambda root, path: path.replace("/", "\\"),
        lambda root, path: f"./{path}",
        lambda root, path: f"{path}/",
        lambda root, path: f".\\{path}\\".replace("/", "\\"),
        lambda root, path: f"{root}/{path}",
        lambda root, path: f"{root}/../{root.name}/{path}/".replace(f"../{root.name}/", ""),
        lambda root, path: unicodedata.normalize("NFD", path),
        lambda root, path: f" {path} ",
    ],
)
def test_spellings_of_paths(tmp_path, spell):
    rows = [(spell(tmp_path, PATHS[0]), "bob"), (spell(tmp_path, PATHS[1]), "carol")]
    assert read(tmp_path, *rows) == {PATHS[0]: "bob", PATHS[1]: "carol"}


def test_absolute_paths_below_a_linked_or_relative_root(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    for place in ("real", "link"):
        named = read(tmp_path / "link", (f"{tmp_path}/{place}/{PATHS[0]}", "bob"))
        assert named == {PATHS[0]: "bob"}
    (tmp_path / "real/identities.csv").replace("identities.csv")
    os.rename("identities.csv", "real/identities.csv")
    assert read_identities_file("link", PATHS) == {PATHS[0]: "bob"}


def test_both_forms_of_one_path_are_named(tmp_path):
    paths = [unicodedata.normalize(form, PATHS[0]) for form in ("NFC", "NFD")]
    assert read(tmp_path, (PATHS[0], "bob"), paths=paths) == dict.fromkeys(paths, "bob")


@pytest.mark.parametrize(
    "rows",
    [
        [("unknown/visible/door/gone", "bob")],
        [(PATHS[0], "bob"), ("gone/1", "bob"), ("gone/2", "carol")],
        [("visible/door/Zo\u00eb", "bob")],  # without the person's folder
    ],
)
def test_rows_that_match_too_little_are_refused(tmp_path, rows):
    with pytest.raises(InputError) as error:
        read(tmp_path, *rows)
    absent = next(number for number, row in enumerate(rows) if row[0] not in PATHS)
    assert f"identities.csv:{absent + 2}: " in str(error.value)
    assert rows[absent][0] in str(error.value)
    assert any(path in str(error.value) for path in PATHS)


def test_half_of_the_rows_are_enough(tmp_path, capsys):
    rows = [(PATHS[0], "bob"), ("gone", "carol"), (PATHS[2], "dave"), ("lost", "erin")]
    assert read(tmp_path, *rows) == {PATHS[0]: "bob", PATHS[2]: "dave"}
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 of its tracklets" in line and "gone" in line
    assert read(tmp_path) == {}


def test_two_rows_for_one_tracklet_are_refused(tmp_path):
    rows = [(PATHS[1], "bob"), (PATHS[2], "bob"), (PATHS[1].replace("/", "\\"), "carol")]
    with pytest.raises(InputError, match=r"identities\.csv:4: .*identities\.csv:2;"):
        read(tmp_path, *rows)
