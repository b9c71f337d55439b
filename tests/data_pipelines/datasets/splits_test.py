"""Splits of people into those to train on and those to test on."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import schema
from data_pipelines.datasets import splits
from data_pipelines.errors import InputError

names = st.text(min_size=1, max_size=8).filter(lambda name: name != schema.UNKNOWN)
shares = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**31)


def tracklets_of(identities, modalities=(schema.VISIBLE, schema.INFRARED, schema.VISIBLE)):
    """Returns the tracklets of these identities, those of one person not side by side."""
    return [
        schema.Tracklet(modality, identity, 1, (f"{identity}/{number}.jpg",), row)
        for number, modality in enumerate(modalities)
        for row, identity in enumerate(identities, start=1)
    ]


def share(test_share, seed=0):
    return lambda identity: splits.split_by_share(identity, test_share, seed)


@pytest.mark.parametrize(("seed", "test"), [(0, {"alice", "dave"}), (7, {"carol", "erin"})])
def test_by_the_first_digits_of_sha256sum(seed, test):
    # `printf '0 alice' | sha256sum` begins with 25be, which is 0.147 of 10000 (hexadecimal); the
    # others: bob c40e, carol 32ef, dave 21f0, erin f8fc; of seed 7: 46f4, c620, 0942, 416c, 0642.
    identities = ["alice", "bob", "carol", "dave", "erin"]
    found = splits.split_tracklets(tracklets_of(identities), share(0.17, seed))
    assert {tracklet.identity for tracklet in found["test"]} == test
    assert {tracklet.identity for tracklet in found["train"]} == set(identities) - test


@settings(deadline=None, max_examples=30)
@given(st.sets(names, max_size=10), st.sets(names, max_size=10), st.floats(0.3, 0.7), seeds)
def test_whoever_comes_moves_nobody_else(people, others, test_share, seed):
    people = people | {f"person {number}" for number in range(60)}  # so that no split is empty
    everyone = people | others
    before, after = (
        splits.split_tracklets(tracklets_of(sorted(group)), share(test_share, seed))
        for group in (people, everyone)
    )
    of_each = [{tracklet.identity for tracklet in members} for members in after.values()]
    assert of_each[0] | of_each[1] == everyone and not of_each[0] & of_each[1]
    assert sum(map(len, after.values())) == 3 * len(everyone)  # all tracklets of a person
    for split, members in before.items():
        assert {tracklet.identity for tracklet in members} == people & {
            tracklet.identity for tracklet in after[split]
        }


@given(names, shares, shares, seeds)
def test_a_larger_share_moves_people_to_the_test_only(identity, one, other, seed):
    smaller, larger = sorted((one, other))
    if splits.split_by_share(identity, smaller, seed) == "test":
        assert splits.split_by_share(identity, larger, seed) == "test"


@settings(deadline=None, max_examples=30)
@given(shares, seeds)
def test_the_share_is_about_that_asked_for(test_share, seed):
    people = 1000
    test = sum(splits.split_by_share(str(n), test_share, seed) == "test" for n in range(people))
    deviation = math.sqrt(people * test_share * (1 - test_share))
    assert abs(test - people * test_share) < 6 * deviation


def test_people_of_unknown_identity_are_left_out(capsys):
    tracklets = tracklets_of(["alice", "bob", "unknown"])
    found = splits.split_tracklets(tracklets, {"alice": "train", "bob": "test"}.__getitem__)
    assert found == {"train": tracklets[::3], "test": tracklets[1::3]}
    assert "left out 3 tracklets of people whose identity is not known" in capsys.readouterr().err


@pytest.mark.parametrize("split", splits.SPLITS)
def test_a_split_without_anybody_in_both_modalities_is_named(split):
    (other,) = {*splits.SPLITS} - {split}
    split_of = {"alice": split, "bob": split, "carol": other}.__getitem__
    tracklets = [
        *tracklets_of(["alice"], [schema.VISIBLE]),
        *tracklets_of(["bob"], [schema.INFRARED]),
        *tracklets_of(["carol"]),
    ]
    with pytest.raises(InputError, match=rf"^{split}: none of its 2 identities, of 3 in all, has"):
        splits.split_tracklets(tracklets, split_of)
    with pytest.raises(InputError, match=rf"^{split}: none of its 0 identities, of 1 in all, has"):
        splits.split_tracklets(tracklets_of(["carol"]), split_of)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "split.csv"
    rows = 'note,identity,split\r\nx,alice , test\r\n,"b, ob",train\r\n,Zoe\u0308,train\r\n'
    path.write_text(f"\ufeff{rows}", "utf-8", newline="")
    split_of = splits.read_split_file(path)
    assert (split_of("alice"), split_of("b, ob"), split_of("Zo\u00eb")) == (
        "test",
        "train",
        "train",
    )
    with pytest.raises(InputError, match=r"split.csv: no row for the identity carol; add carol,tr"):
        split_of("carol")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "split.csv: the column identity is missing"),
        ("identity,part\na,test\n", "split.csv: the column split is missing"),
        ("identity,split\na,test\na,test\n", r"split.csv:3: .*split.csv:2;"),
        ("identity,split\na,val\n", "split.csv:2: split is 'val': use train or test"),
        ("identity,split\na\n", "split.csv:2: split is '': use train or test"),
        ("identity,split\nUnknown,test\n", "split.csv:2: unknown stands for people whose identity"),
        ("identity,split\na,test\nb, c,train\n", "split.csv:3: .*train"),
        ('identity,split\n"a"b,test\n', "split.csv:2: not a readable CSV file"),
        ("identity,split\n\udcff,test\n", "split.csv:2: .*UTF-8"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "split.csv"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message) as error:
        splits.read_split_file(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"split\.csv"):
        splits.read_split_file(tmp_path / "split.csv")
    with pytest.raises(InputError, match="is a folder"):
        splits.read_split_file(tmp_path)
