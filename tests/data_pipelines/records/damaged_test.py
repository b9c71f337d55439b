"""Packed datasets with changed, damaged or malicious files, and their fingerprints."""

import errno
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import hitsz_files
import limits
import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds
import tiny

from data_pipelines.datasets import hitsz_vcm
from data_pipelines.errors import InputError
from data_pipelines.records import origin, reading
from data_pipelines.records.dataset import open_dataset, resolve
from data_pipelines.records.record import serialized

SMALL_FILES = ("dataset_info.json", "features.json", "metadata.json", "origin.json")
SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny.packed_dataset(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def packed(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "packed"))


def open_all(packed):
    for split in SPLITS:
        open_dataset(packed).split(split)
        open_dataset(packed).split(split)


def seal(packed):
    """Corrects all checksums, as an attacker would."""
    content = json.loads((packed / "origin.json").read_text())
    for name, facts in content["files"].items():
        stored = (packed / name).read_bytes()
        facts.update(bytes=len(stored), sha256=hashlib.sha256(stored).hexdigest())
    seal_list(packed, content)


def seal_list(packed, content):
    content.pop("checksum")
    (packed / "origin.json").write_text(json.dumps(origin.sealed(content)))


def edit_metadata(packed, change):
    content = json.loads((packed / "metadata.json").read_text())
    change(content)
    (packed / "metadata.json").write_text(json.dumps(content))
    seal(packed)


def shard_of(packed, split):
    return next(packed.glob(f"*-{split}.array_record*"))


def refused(packed, path):
    with pytest.raises(InputError) as error:
        open_all(packed)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "pack the dataset again" in message
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("name", SMALL_FILES)
def test_each_changed_digit_is_detected(packed, name):
    path = packed / name
    content = path.read_bytes()
    digits = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    for place in digits[:: max(1, len(digits) // 300)]:
        other = str((int(chr(content[place])) + 1) % 10).encode()
        path.write_bytes(content[:place] + other + content[place + 1 :])
        refused(packed, path)
    path.write_bytes(content)
    open_all(packed)


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "null": lambda content: b"null",
    "list": lambda content: b"[1]",
    "noise": lambda content: bytes(range(256)),
    "deep": lambda content: b'{"a":' + b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_damaged_file_is_named(packed, name, damage):
    path = packed / name
    path.write_bytes(damage(path.read_bytes()))
    refused(packed, path)
    path.unlink()
    if name == "origin.json":
        with pytest.raises(FileNotFoundError, match="not a packed dataset"):
            open_all(packed)
    else:
        refused(packed, path)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_what_tfds_wrote_is_not_read(whole, packed, name, damage):
    (packed / name).write_bytes(damage((packed / name).read_bytes()))
    seal(packed)
    found, expected = (open_dataset(path).split("test").index for path in (packed, whole))
    assert repr(found) == repr(expected)
    assert open_dataset(packed).split("test").records[0]["frames"]


def set_column(name, values):
    def change(metadata):
        metadata["train"][name] = values

    return change


STRANGE_METADATA = {
    "nothing": lambda metadata: metadata.clear(),
    "no split": lambda metadata: metadata.update(train=None),
    "column of null": set_column("cameras", None),
    "nulls": set_column("cameras", [None] * 24),
    "text": set_column("labels", ["0"] * 24),
    "fractions": set_column("labels", [0.5] * 24),
    "numbers for names": set_column("identities", [1] * 24),
    "beyond 32 bits": set_column("rows", [2**40] * 24),
    "beyond 64 bits": set_column("rows", [2**80] * 24),
    "too few": set_column("num_frames", [12] * 23),
    "nested": set_column("num_frames", [[12]] * 24),
    "ragged": set_column("num_frames", [[12, 1], [12]] * 12),
    "a label too many": set_column("labels", [6] * 24),
    "a label too low": set_column("labels", [-2] * 24),
    "a modality too many": set_column("modalities", [2] * 24),
    "another version": lambda metadata: metadata["train"].pop("queries"),
}


@pytest.mark.parametrize("change", STRANGE_METADATA.values(), ids=STRANGE_METADATA.keys())
def test_strange_metadata_with_correct_checksums_is_named(packed, change):
    edit_metadata(packed, change)
    with pytest.raises(InputError) as error:
        open_dataset(packed).split("train")
    assert str(packed) in str(error.value) and "\n" not in str(error.value)


def test_a_dataset_packed_before_drawn_people_were_noted_is_read(packed):
    before = open_dataset(packed).fingerprint, repr(open_dataset(packed).split("train").index)
    assert not open_dataset(packed).is_synthetic
    edit_metadata(packed, lambda metadata: metadata.pop("synthetic"))
    assert (
        open_dataset(packed).fingerprint,
        repr(open_dataset(packed).split("train").index),
    ) == before
    assert not open_dataset(packed).is_synthetic


def set_file(name, **facts):
    return lambda content: content["files"].update({name: facts})


RIGHT = {"bytes": 1, "sha256": "0"}
STRANGE_ORIGINS = {
    "no files": lambda content: content.pop("files"),
    "a list": lambda content: content.update(files=[]),
    "without metadata": lambda content: content.update(files={}),
    "up": set_file("../up", **RIGHT),
    "root": set_file("/etc/passwd", **RIGHT),
    "itself": set_file("origin.json", **RIGHT),
    "text": set_file("a", bytes="1", sha256="0"),
    "null": set_file("a", bytes=None, sha256="0"),
    "negative": set_file("a", bytes=1, sha256="0", split="train", records=-1),
    "missing": set_file("a", bytes=1),
    "unknown": set_file("a", **RIGHT, color="red"),
}


@pytest.mark.parametrize("change", STRANGE_ORIGINS.values(), ids=STRANGE_ORIGINS.keys())
def test_a_strange_list_of_files_is_named(packed, change):
    content = json.loads((packed / "origin.json").read_text())
    change(content)
    seal_list(packed, content)
    refused(packed, packed / "origin.json")


@pytest.mark.parametrize("pattern", ["*-train.array_record*", "metadata.json"])
def test_a_pipe_in_place_of_a_file_is_refused(packed, pattern):
    path = next(packed.glob(pattern))
    path.unlink()
    os.mkfifo(path)
    refused(packed, path)


def test_datasets_without_checksums_must_be_packed_again(packed):
    path = packed / "origin.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_text(json.dumps(content))
    assert "older version of star_jax" in refused(packed, path)


def test_no_module_is_imported_that_a_file_names(packed, tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    (tmp_path / "hostile.py").write_text(
        f"open({str(trace)!r}, 'w')\nimport tensorflow_datasets as tfds\n"
        "class Features(tfds.features.FeaturesDict): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = packed / "features.json"
    content = json.loads(path.read_text())
    content["pythonClassName"] = "hostile.Features"
    path.write_text(json.dumps(content))
    refused(packed, path)
    seal(packed)
    open_all(packed)
    assert open_dataset(packed).split("train").records[0]["frames"]
    assert not trace.exists() and "hostile" not in sys.modules
    tfds.builder_from_directory(str(packed))
    assert trace.exists(), "the file is not hostile"


def test_a_shard_cut_between_blocks_is_named_when_it_is_opened(packed):
    path = shard_of(packed, "train")
    size = path.stat().st_size
    os.truncate(path, size - 2**16)
    assert f"has {size - 2**16} of {size} bytes" in refused(packed, path)


def forge(packed, change):
    """Changes record 5 as an attacker would, with all checksums right."""
    stored = list(open_dataset(packed).split("train").records)
    change(stored[5])
    with reading.open_writer(shard_of(packed, "train")) as write:
        for record in stored:
            write(serialized(record))
    seal(packed)
    return open_dataset(packed).split("train").records


def change_label(record):
    record["label"] += 1


def change_identity(record):
    record["identity"] = "0005"


def drop_keypoints(record):
    record["keypoints"] = record["keypoints"][1:]


def drop_height(record):
    record["height"] = record["height"][1:]


@pytest.mark.parametrize("change", [change_label, change_identity, drop_keypoints, drop_height])
def test_a_record_that_contradicts_itself_or_the_index_is_named(packed, change):
    label = open_dataset(packed).split("train").records[4]["label"]
    read = forge(packed, change)
    assert read[4]["label"] == label
    with pytest.raises(InputError, match=rf"^{packed}: record 5 has .*; remove"):
        read[5]


def test_what_is_not_a_record_is_named(packed):
    path = shard_of(packed, "train")
    with reading.open_writer(path) as write:
        for _ in range(24):
            write(b"\x0a\xff no example")
    seal(packed)
    with pytest.raises(InputError, match=rf"^{packed}: record 3 cannot be read"):
        open_dataset(packed).split("train").records[3]


def test_a_damaged_record_is_named(packed):
    path = shard_of(packed, "train")
    content = bytearray(path.read_bytes())
    content[100:-100] = bytes(len(content) - 200)
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{packed}: record 3 .*{path} is damaged; remove"):
        open_dataset(packed).split("train").records[3]


def test_too_many_open_files_are_no_damage(packed):
    records = open_dataset(packed).split("train").records
    with limits.no_file_can_be_opened(), pytest.raises(OSError) as reading_error:
        records[3]
    with limits.no_file_can_be_opened(), pytest.raises(OSError) as opening_error:
        open_dataset(packed).split("train")
    for error in (reading_error, opening_error):
        assert error.value.errno == errno.EMFILE and str(packed) in error.value.filename
    assert open_dataset(packed).split("train").records[3]["frames"]


def test_a_file_that_has_gone_is_named(packed):
    records = open_dataset(packed).split("train").records
    path = shard_of(packed, "train")
    path.rename(packed / "elsewhere")
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        records[3]


def test_a_path_that_is_not_utf_8_is_no_damage(packed, tmp_path):
    """So are all paths with other letters than ASCII in a locale without UTF-8."""
    other = Path(shutil.copytree(packed, tmp_path / os.fsdecode(b"caf\xe9")))
    stored = list(open_dataset(other).split("train").records)
    with reading.open_writer(other / "new") as write:
        write(serialized(stored[0]))
    assert (other / "new").stat().st_size > 0
    assert stored[3]["frames"] == open_dataset(packed).split("train").records[3]["frames"]


@pytest.mark.parametrize("error", [MemoryError("full"), OSError(errno.EIO, "a disk")])
def test_trouble_of_the_machine_stays_what_it_is(packed, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    records = open_dataset(packed).split("train").records
    monkeypatch.setattr(reading.features(), "deserialize_example_np", fail)
    with pytest.raises(type(error)) as found:
        records[3]
    assert found.value is error


def test_an_unknown_error_about_an_intact_file_asks_for_no_removal(packed, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("what nobody expects")

    records = open_dataset(packed).split("train").records
    monkeypatch.setattr(reading.features(), "deserialize_example_np", fail)
    with pytest.raises(InputError, match=f"^{packed}: record 3 .*what nobody expects") as found:
        records[3]
    assert "remove" not in str(found.value) and str(shard_of(packed, "train")) in str(found.value)


def huge(height, width):
    """Returns a JPEG that claims another size."""
    jpeg = bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    place = jpeg.find(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(jpeg)


def set_item(name, place, value):
    def change(record):
        record[name] = list(record[name]) if name == "frames" else record[name].copy()
        record[name][place] = value

    return change


def set_size(height, width):
    def change(record):
        set_item("height", 2, height)(record)
        set_item("width", 2, width)(record)
        set_item("frames", 2, huge(height, width))(record)

    return change


IMPOSSIBLE = {
    "negative width": set_item("width", 2, -5),
    "no height": set_item("height", 2, 0),
    "enormous": set_size(65500, 65500),
    "NaN": set_item("keypoints", (2, 5, 0), np.nan),
    "infinite": set_item("keypoints", (2, 5, 2), np.inf),
    "joint far away": set_item("keypoints", (2, 5, 1), 1e38),
    "negative confidence": set_item("keypoints", (2, 5, 2), -1),
}
UNREADABLE = {
    "garbage": set_item("frames", 2, b"garbage"),
    "cut": set_item("frames", 2, huge(64, 32)[:200]),
    "huge": set_item("frames", 2, huge(65500, 65500)),
    "other size": set_item("frames", 2, huge(72, 40)),
    "smaller": set_item("frames", 2, huge(16, 16)),
}


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_a_record_of_what_cannot_be_is_refused(packed, change):
    records = forge(packed, change)
    assert records[4]["frames"]
    with pytest.raises(InputError, match=rf"^{packed}: record 5 "):
        records[5]


@pytest.mark.parametrize("change", UNREADABLE.values(), ids=UNREADABLE.keys())
@pytest.mark.parametrize("size", [None, (24, 12)], ids=["as stored", "resized"])
def test_a_forged_frame_is_refused_and_takes_no_memory(packed, change, size):
    record = forge(packed, change)[5]
    size = size or (int(record["height"][2]), int(record["width"][2]))
    frames = np.zeros((2, *size, 3), np.uint8)
    with limits.little_memory(2**30), pytest.raises(InputError) as error:  # it would take 12 GiB
        reading.decode_clip(record, np.array([1, 2]), frames)
    message = str(error.value)
    assert f"row {record['tracklet']}," in message and record["frame_ids"][2] in message


def test_the_fingerprint_is_that_of_the_tracklets(whole, packed, tmp_path):
    """Packed by another process, in which texts have other hashes, from another place."""
    source = shutil.copytree(whole.parents[1] / "source", tmp_path / "elsewhere")
    program = f"""
from data_pipelines.datasets import hitsz_vcm
from data_pipelines.records.dataset import open_dataset
print(open_dataset(hitsz_vcm.prepare({str(source)!r}, {str(tmp_path)!r})).fingerprint)
"""
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    )
    fingerprint = open_dataset(whole).fingerprint
    assert result.stdout.split() == [fingerprint]
    assert len(fingerprint) == 64 and open_dataset(packed).fingerprint == fingerprint


def test_the_fingerprint_of_other_tracklets_differs(packed, tmp_path):
    found = {open_dataset(packed).fingerprint}
    edit_metadata(packed, set_column("queries", [False] * 24))
    found.add(open_dataset(packed).fingerprint)
    for name in ("one", "other"):
        root = hitsz_files.write_dataset(tmp_path / name)
        if name == "other":
            hitsz_files.write_skeletons(
                root / "skeletons.h5", leave_out=hitsz_files.SPLITS["train"][1].frames()
            )
        found.add(open_dataset(hitsz_vcm.prepare(root, tmp_path / f"packed_{name}")).fingerprint)
    assert len(found) == 4


def test_opening_reads_no_records(whole):
    reads = []
    read_bytes = Path.read_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: reads.append(path.name) or read_bytes(path))
        open_all(whole)
    assert set(reads) == set(SMALL_FILES)


def test_a_folder_around_a_packed_dataset_stands_for_it(packed, tmp_path):
    data = tmp_path / "mine"
    inner = shutil.copytree(packed, data / "folder/1.1.0")
    (data / "folder/1.1.0.incomplete7").mkdir()
    shutil.copy(inner / "origin.json", data / "folder/1.1.0.incomplete7")  # of interrupted packing
    for given in (data, data / "folder", inner):
        assert resolve(given) == str(inner)
        assert len(open_dataset(given).split("train").records) == len(
            open_dataset(packed).split("train").records
        )
    other = shutil.copytree(packed, data / "hitsz_vcm/2.1.0")
    with pytest.raises(ValueError, match=f"several packed datasets, {inner}, {other}; "):
        open_dataset(data).split("train")
    assert resolve("gs://bucket/x") == "gs://bucket/x"
