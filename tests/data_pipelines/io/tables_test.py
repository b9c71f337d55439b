"""CSV files: those that spreadsheets save, others that are refused, and those for spreadsheets."""

import csv
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from data_pipelines.io import tables

COLUMNS = ("tracklet", "identity")
TEXT = "tracklet,identity\r\na/b,Zoë\r\nc/d,王小明\r\n"
ROWS = [{"tracklet": "a/b", "identity": "Zoë"}, {"tracklet": "c/d", "identity": "王小明"}]


def write(tmp_path, content, encoding="utf-8"):
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def read(path):
    return [row for _, row in tables.read_rows(path, COLUMNS)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_spreadsheets_save_is_read(tmp_path, encoding, delimiter):
    path = write(tmp_path, TEXT.replace(",", delimiter), encoding)
    assert read(path) == ROWS


def test_utf_16_of_both_byte_orders_is_read(tmp_path):
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        assert read(write(tmp_path, mark + TEXT.encode(encoding))) == ROWS


def test_a_separator_is_that_of_the_header(tmp_path):
    """The cells have others in them."""
    path = write(tmp_path, 'note;tracklet;identity\r\n"1,5;2";a;x, y\r\n')
    assert read(path) == [{"note": "1,5;2", "tracklet": "a", "identity": "x, y"}]
    path = write(tmp_path, '"tracklet";"identity"\n"a";"b"\n')
    assert read(path) == [{"tracklet": "a", "identity": "b"}]


def test_empty_cells_and_rows_of_spreadsheets_do_not_count(tmp_path):
    path = write(tmp_path, "tracklet , identity,,\na,b,,\n,,,\n\n  ,\t\nc\n")
    found = tables.read_rows(path, COLUMNS)
    assert [(os.path.basename(place), row) for place, row in found] == [
        ("a.csv:2", {"tracklet": "a", "identity": "b"}),
        ("a.csv:6", {"tracklet": "c", "identity": ""}),
    ]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", ("tracklet",)),
        (b"tracklet,name\n", ("identity",)),
        (b"tracklet|identity\n", ("tracklet",)),
        (b"tracklet,identity,identity\na,b,c\n", ("two", "identity")),
        (b"tracklet,identity\nx,id7, a\ny,id7, b\n", (":2:", "' a'")),
        (b"tracklet,identity,\nx,y\nx,id7, b\n", (":3:", "' b'")),
        (b'tracklet,identity\nx,"a"b\n', (":2:",)),
        (b'tracklet,identity\nx,"a\n', (":2:",)),
        ("tracklet,identity\nx,Anna\ny,Zoë\n".encode("cp1252"), (":3:", "UTF-8")),
        ("tracklet,identity\nx,王\n".encode("gbk"), (":2:", "UTF-8")),
        ("tracklet,identity\nx,y\n".encode("utf-16-le"), (":1:", "UTF-8")),
        (b"tracklet,identity\nx,y\nz,a\0b\n", (":3:", "NUL")),
        (b"\xff\xfetracklet,identity", ("UTF-8",)),
        (b"PK\x03\x04\x14\0\xc3\x28\0", (":1:", "UTF-8")),  # of a spreadsheet itself
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_row(tmp_path, content, named):
    path = write(tmp_path, content)
    with pytest.raises(InputError) as error:
        tables.read_rows(path, COLUMNS)
    message = str(error.value)
    assert message.startswith(str(path)) and all(name in message for name in named)
    assert "\n" not in message and "codec" not in message


@given(
    cells=st.lists(st.tuples(*[st.text("ab ,;\t\"'\n", min_size=1)] * 2), max_size=5),
    delimiter=st.sampled_from(",;\t"),
)
def test_any_cells_are_read_as_the_csv_module_reads_them(tmp_path_factory, cells, delimiter):
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([COLUMNS, *cells])
    found = [(row["tracklet"], row["identity"]) for row in read(path)]
    assert found == [row for row in cells if any(cell.strip() for cell in row)]


def entry(row):
    if row["identity"] == "wrong":
        raise InputError("the identity is wrong")
    return row["tracklet"], row["identity"]


def test_a_table_is_by_what_its_rows_are_about(tmp_path, capsys):
    path = write(tmp_path, "tracklet,identity\n a , Unknown \nb,unknown\nc,Zoe\u0308 \n")
    assert tables.read_table(path, COLUMNS, entry) == {
        "a": (f"{path}:2", "unknown"),
        "b": (f"{path}:3", "unknown"),
        "c": (f"{path}:4", "Zo\u00eb"),
    }
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}:2" in line and "Unknown" in line


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("a,x\nb,y\na,z\n", (":4:", ":2;")),
        ("a,x\nb,wrong\n", (":3:", "the identity is wrong")),
        ("a,x\nb,\n", (":3:", "empty")),
        ("a,x\nb,y\u200b\n", (":3:", "U+200B")),
    ],
)
def test_rows_of_a_table_that_cannot_be_used_are_named(tmp_path, rows, named):
    path = write(tmp_path, f"tracklet,identity\n{rows}")
    with pytest.raises(InputError) as error:
        tables.read_table(path, COLUMNS, entry)
    assert str(error.value).startswith(str(path))
    assert all(name in str(error.value) for name in named)


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.csv"):
        tables.read_rows(tmp_path / "a.csv", COLUMNS)
    with pytest.raises(InputError, match=str(tmp_path)):
        tables.read_rows(tmp_path, COLUMNS)


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("tracklet,identity\na,Zoë", "utf-8"),
        ("tracklet,identity\na,Zoë\n", "utf-8-sig"),
        ("identity;tracklet;note\r\nZoë;a;x\r\n", "utf-8-sig"),
        ("tracklet\tidentity\r\na\tZoë\r\n", "utf-16"),
    ],
)
def test_rows_are_added_in_the_way_of_the_file(tmp_path, content, encoding):
    path = write(tmp_path, content, encoding)
    tables.add_rows(path, COLUMNS, [{"tracklet": "b;,", "identity": "王"}])
    text = path.read_bytes().decode(encoding)
    assert text.startswith(content) and text.count("\r\n") in (0, text.count("\n"))
    assert [(row["tracklet"], row["identity"]) for row in read(path)] == [
        ("a", "Zoë"),
        ("b;,", "王"),
    ]


def test_a_new_file_begins_with_the_header_and_a_mark(tmp_path):
    path = tmp_path / "new.csv"
    tables.add_rows(path, COLUMNS, [{"tracklet": "a", "identity": "unknown"}])
    assert path.read_bytes() == b"\xef\xbb\xbftracklet,identity\na,unknown\n"


def test_a_file_that_cannot_be_read_stays_as_it_is(tmp_path):
    path = write(tmp_path, "tracklet,identity\na,Zoë\n", "cp1252")
    before = path.read_bytes()
    with pytest.raises(InputError, match="UTF-8"):
        tables.add_rows(path, COLUMNS, [{"tracklet": "b", "identity": "x"}])
    assert path.read_bytes() == before


def test_a_file_for_spreadsheets_begins_with_a_mark_and_has_no_formulas(tmp_path):
    content = tables.csv_file([("tracklet", "identity"), ("=1+1", "王小明"), (-1.5, "a,b")])
    assert content[:3] == b"\xef\xbb\xbf"
    assert content[3:].decode() == 'tracklet,identity\r\n\'=1+1,王小明\r\n-1.5,"a,b"\r\n'
    assert read(write(tmp_path, content))[0]["identity"] == "王小明"
