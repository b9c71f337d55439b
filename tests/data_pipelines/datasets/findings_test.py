"""Errors of a dataset's files: collected, or raised one by one."""

import pytest

from data_pipelines.datasets.findings import RAISE_ERRORS, Findings, first_of
from data_pipelines.errors import InputError


def test_a_long_list_is_cut_but_every_kind_is_shown():
    findings = Findings()
    for number in range(1000):
        findings.report(f"frame {number}", "the frames of train")
        findings.report(f"train_name.txt:{number}: bad")
        findings.report(f'data_paths.json["{number}"]: bad')
    findings.report("by itself")
    findings.report("by itself")
    lines = str(findings).splitlines()
    assert len(findings.wrong) == 3001
    assert lines == [
        "",
        "",
        "3001 problems:",
        *(f"- frame {number}" for number in range(10)),
        "- ... and 990 more of the frames of train",
        *(f"- train_name.txt:{number}: bad" for number in range(10)),
        "- ... and 990 more of train_name.txt",
        *(f'- data_paths.json["{number}"]: bad' for number in range(10)),
        "- ... and 990 more of data_paths.json",
        "- by itself",
    ]


def test_errors_of_a_block_are_collected_and_end_it():
    findings, reached = Findings(), []
    for error in (FileNotFoundError("a.txt: no such file"), InputError("a.txt:3: bad"), None):
        with findings.catch():
            if error:
                raise error
            reached.append(error)
    assert reached == [None]
    assert findings.wrong == ["a.txt: no such file", "a.txt:3: bad"]
    with pytest.raises(ZeroDivisionError), findings.catch():  # not an error of a file
        raise ZeroDivisionError


def test_packing_raises_the_first_error_and_logs_warnings(capsys):
    RAISE_ERRORS.warn("a.txt:3: strange")
    with pytest.raises(InputError, match=r"^a\.txt:4: bad$"):
        RAISE_ERRORS.report("a.txt:4: bad")
    with pytest.raises(FileNotFoundError, match=r"^b\.txt: no such file$"), RAISE_ERRORS.catch():
        raise FileNotFoundError("b.txt: no such file")
    assert capsys.readouterr() == ("", "a.txt:3: strange\n")
    assert RAISE_ERRORS.wrong == []


def test_a_check_collects_warnings_and_logs_nothing(capsys):
    findings = Findings()
    findings.warn("a.txt:3: strange")
    assert findings.wrong == ["a.txt:3: strange"]
    assert capsys.readouterr() == ("", "")


def test_only_the_counts_that_differ_are_reported():
    published = {"train": {"rows": 4, "names": 9}, "test": {"rows": 2}}
    findings = Findings()
    findings.report_counts({"train": {"rows": 4, "names": 9}}, published, "other lists")
    assert findings.wrong == []
    counts = {"train": {"rows": 4, "names": 8}, "test": {"rows": 3}}
    findings.report_counts(counts, published, "other lists")
    differences = "train names 8 instead of 9, test rows 3 instead of 2"
    assert findings.wrong == [f"other lists: {differences}; fetch them again"]


@pytest.mark.parametrize(
    ("places", "text"),
    [(["a:1"], "a:1"), (["a:1", "b:2"], "a:1 and 1 more"), ("xyz", "x and 2 more")],
)
def test_the_first_place_stands_for_all(places, text):
    assert first_of(places) == text
