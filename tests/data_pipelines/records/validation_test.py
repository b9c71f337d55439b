"""Training identities that are held out: who they are, and that training never sees them."""

import hitsz_files
import numpy as np
import pytest
import tiny

from data_pipelines import loader, schema
from data_pipelines.datasets import hitsz_vcm
from data_pipelines.records.dataset import open_dataset
from data_pipelines.sampling import BatchSpec, ClipSpec, trainable_labels

TRAIN = (1, 2, 3, 4, 5, 7)
SIZE = (hitsz_files.HEIGHT, hitsz_files.WIDTH)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return tiny.packed_dataset(tmp_path_factory.mktemp("packed"), train=TRAIN)


def held_out(packed, count):
    return sorted(set(open_dataset(packed).split("validation", count).index.identities.tolist()))


@pytest.mark.parametrize("count", range(1, 7))
def test_a_tracklet_is_in_one_part_with_the_facts_of_its_record(packed, count):
    whole = open_dataset(packed).split("train").index
    stored = {record["tracklet"]: record for record in open_dataset(packed).split("train").records}
    rows, identities = [], {}
    for split in ("train", "validation"):
        index = open_dataset(packed).split(split, count).index
        records = open_dataset(packed).split(split, count).records
        assert len(records) == len(index.rows)
        identities[split] = sorted(set(index.identities.tolist()))
        for position, record in enumerate(records):
            original = stored[record["tracklet"]]
            rows.append(record["tracklet"])
            assert index.rows[position] == record["tracklet"]
            assert index.identities[position] == record["identity"] == original["identity"]
            assert index.num_frames[position] == len(original["frames"])
            assert record["frames"] == original["frames"]
            label = identities[split].index(record["identity"]) if split == "train" else -1
            assert record["label"] == index.labels[position] == label
            assert split == "train" or (index.queries[position] and index.galleries[position])
    assert sorted(rows) == sorted(whole.rows.tolist())
    assert len(identities["validation"]) == count and len(identities["train"]) == 6 - count
    assert not set(identities["train"]) & set(identities["validation"])


def test_the_choice_stays_the_same(packed, tmp_path):
    """Runs that held out others could not be compared: do not change it."""
    assert held_out(packed, 3) == ["0003", "0004", "0005"]
    for count in range(1, 6):
        assert set(held_out(packed, count)) < set(held_out(packed, count + 1))
    others = tiny.packed_dataset(tmp_path, train=(*TRAIN, 11, 12))
    chosen = set(held_out(others, 4))
    assert chosen - {"0011", "0012"} <= set(held_out(packed, 4))


def test_an_identity_of_one_modality_is_not_held_out(tmp_path):
    rows = [row for row in tiny.rows_of((1, 2, 3)) if (row.identity, row.code) != (2, 1)]
    source = hitsz_files.write_dataset(
        tmp_path / "root", splits={"train": rows, "test": tiny.rows_of((503, 504))}
    )
    dataset = hitsz_vcm.prepare(source, tmp_path)
    assert held_out(dataset, 2) == ["0001", "0003"]
    with pytest.raises(
        ValueError, match=r"identities is 3: .* has 2 training identities with trac"
    ):
        open_dataset(dataset).split("train", 3)


def test_nothing_changes_without_identities_held_out(packed):
    plain, same = (
        open_dataset(packed).split("train").index,
        open_dataset(packed).split("train", 0).index,
    )
    np.testing.assert_array_equal(plain.labels, same.labels)
    test, other = (
        open_dataset(packed).split("test").index,
        open_dataset(packed).split("test", 3).index,
    )
    np.testing.assert_array_equal(test.rows, other.rows)
    assert len(open_dataset(packed).split("test", 3).records) == len(test.rows)
    with pytest.raises(ValueError, match=r"split 'validation': .*validation_identities is 0, so "):
        open_dataset(packed).split("validation")
    with pytest.raises(IndexError, match=r"record -1: this part of the split has 12"):
        open_dataset(packed).split("train", 3).records[-1]


def test_training_never_sees_them(packed):
    split = open_dataset(packed).split("train", 2)
    assert trainable_labels(split.index).tolist() == [0, 1, 2, 3]
    left = {name for name in open_dataset(packed).split("train").index.identities.tolist()}
    left -= set(held_out(packed, 2))
    seen = set()
    clips, sizes = ClipSpec(2, SIZE), BatchSpec(seed=0, identities=4, tracklets=2)
    for batch in loader.train_batches(split, clips, sizes, range(3)):
        assert set(batch["labels"].tolist()) == {0, 1, 2, 3}
        for positions, label in zip(batch["positions"], batch["labels"], strict=True):
            for modality, position in enumerate(positions.tolist()):
                record = split.records[position]
                assert (record["label"], record["modality"]) == (label, modality)
                seen.add(record["identity"])
    assert seen == left
    with pytest.raises(ValueError, match="a batch of 4 identities: only 3 have"):
        loader.train_batches(open_dataset(packed).split("train", 3), clips, sizes, range(3))


def test_clips_of_the_validation_split(packed):
    split = open_dataset(packed).split("validation", 2)
    records = split.records
    (batch,) = loader.embed_batches(split, ClipSpec(1, SIZE), range(len(split)), batch_size=8)
    assert batch["position"].tolist() == list(range(8)) and len(records) == 8
    for position, record in enumerate(records):
        np.testing.assert_array_equal(batch["keypoints"][position, 0], record["keypoints"][0])
    assert {record["modality"] for record in records} == {schema.VISIBLE, schema.INFRARED}
