"""Journals: entries survive a kill, one process at a time, and only for the same work."""

import pytest

from data_pipelines.errors import InputError
from data_pipelines.footage.journal import open_journal


def refuse_others(found):
    if found != {"work": "a"}:
        raise InputError("another journal")


def opened(path):
    return open_journal(path, {"work": "a"}, refuse_others)


def test_entries_are_read_again_and_new_ones_follow(tmp_path):
    path = tmp_path / "journal"
    with opened(path) as journal:
        assert list(journal.entries()) == []
        journal.append([1, "one"])
        journal.append({"two": 2})
    with opened(path) as journal:
        assert list(journal.entries()) == [[1, "one"], {"two": 2}]
        journal.append(3)
        assert list(journal.entries()) == [[1, "one"], {"two": 2}, 3]
    assert path.read_text() == '{"work": "a"}\n[1, "one"]\n{"two": 2}\n3\n'


def test_entries_and_appends_interleave_once_all_are_read(tmp_path):
    with opened(tmp_path / "journal") as journal:
        journal.append(0)
        recorded = journal.entries()
        assert next(recorded) == 0
        for number in range(1, 4):
            assert next(recorded, None) is None
            journal.append(number)
        assert list(journal.entries()) == [0, 1, 2, 3]


@pytest.mark.parametrize("end", [b"[7", b"[7]", b"[7,\n", b"\0\0\0\n[8]\n"])
def test_what_a_kill_leaves_is_cut_off(tmp_path, end):
    path = tmp_path / "journal"
    with opened(path) as journal:
        journal.append(1)
    whole = path.read_bytes()
    path.write_bytes(whole + end)
    with opened(path) as journal:
        assert list(journal.entries()) == [1]
        journal.append(2)
    assert path.read_bytes() == whole + b"2\n"


@pytest.mark.parametrize("start", [b"", b"{", b'{"work": "b"'])
def test_a_journal_without_a_whole_header_starts_anew(tmp_path, start):
    path = tmp_path / "journal"
    path.write_bytes(start)
    with opened(path) as journal:
        assert list(journal.entries()) == []
    assert path.read_bytes() == b'{"work": "a"}\n'


@pytest.mark.parametrize("header", [b'{"work": "b"}\n', b"text\n", b"[1]\n"])
def test_another_journal_is_kept(tmp_path, header):
    path = tmp_path / "journal"
    path.write_bytes(header)
    with pytest.raises(InputError, match="another journal"), opened(path):
        pass
    assert path.read_bytes() == header


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "journal"
    refused = pytest.raises(InputError, match="journal: another process is writing it")
    with opened(path), refused, opened(path):
        pass
