"""launch/prepare.py with datasets of other packages."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from data_pipelines import schema
from data_pipelines.datasets import DATASETS, find_dataset
from data_pipelines.errors import InputError
from data_pipelines.records.dataset import open_dataset

ROOT = Path(__file__).parents[2]
MODULE = """
import types

from data_pipelines import schema
from data_pipelines.datasets import checks
from data_pipelines.records import packing
from data_pipelines.records.source import Source


def prepare(source, data_dir, *, keypoints, num_workers):
    splits = {
        split: [
            schema.Tracklet(modality, name, 4, (f"{name}.jpg",), row)
            for row, name in enumerate(["bob", "alice"], start=1)
            for modality in (schema.VISIBLE, schema.INFRARED)
        ]
        for split in ("train", "test")
    }
    corridor = Source(source, splits, keypoints=keypoints, num_workers=num_workers)
    return packing.prepare(corridor, data_dir, "corridor/1.0.0")


CORRIDOR = types.SimpleNamespace(prepare=prepare)
EMPTY = object()
"""


@pytest.fixture
def package(tmp_path):
    """A package outside the repository, and the files of its dataset."""
    folder = tmp_path / "packages" / "elsewhere"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "footage.py").write_text(MODULE)
    source = tmp_path / "source"
    (source / "skeletons").mkdir(parents=True)
    for gray, name in ((40, "alice"), (200, "bob")):
        jpeg = simplejpeg.encode_jpeg(np.full((8, 4, 3), gray, np.uint8))
        (source / f"{name}.jpg").write_bytes(jpeg)
        np.save(source / "skeletons" / f"{name}.npy", np.full((17, 3), 1.0, np.float32))
    return folder.parent


def prepare(package, *arguments):
    return subprocess.run(
        [sys.executable, "launch/prepare.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(package)])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_dataset_of_another_package_is_packed(package, tmp_path):
    result = prepare(
        package,
        "--dataset=elsewhere.footage:CORRIDOR",
        f"--source={tmp_path / 'source'}",
        f"--data_dir={tmp_path / 'data'}",
    )
    assert result.returncode == 0, result.stderr
    packed = tmp_path / "data" / "corridor" / "1.0.0"
    assert f"packed dataset: {packed}\n" in result.stdout
    index = open_dataset(packed).split("train").index
    assert index.identities.tolist() == ["bob", "bob", "alice", "alice"]
    assert index.labels.tolist() == [1, 1, 0, 0]
    assert index.modalities.tolist() == [schema.VISIBLE, schema.INFRARED] * 2
    record = open_dataset(packed).split("test").records[2]  # alice
    assert abs(simplejpeg.decode_jpeg(record["frames"][0]).astype(int) - 40).max() <= 1
    np.testing.assert_array_equal(record["keypoints"], np.ones((1, 17, 3)))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--dataset=corridor"],
            "--dataset is 'corridor': use hitsz_vcm, bupt_campus, folder, synthetic_vcm, or "
            "package.module:object for a component from another package",
        ),
        (
            ["--dataset=nowhere.footage:CORRIDOR"],
            "--dataset is 'nowhere.footage:CORRIDOR': it cannot be imported "
            "(ModuleNotFoundError: No module named 'nowhere')",
        ),
        (
            ["--dataset=elsewhere.footage:EMPTY"],
            "--dataset is 'elsewhere.footage:EMPTY': use an object with a function prepare, not "
            "one of type object",
        ),
        (
            ["--dataset=elsewhere.footage:CORRIDOR", "--check"],
            "--dataset is 'elsewhere.footage:CORRIDOR': use an object with a function check, not "
            "one of type SimpleNamespace",
        ),
    ],
)
def test_a_dataset_that_cannot_be_used_is_named(package, arguments, line):
    result = prepare(package, *arguments, "--source=source")
    assert (result.returncode, result.stderr) == (1, f"error: {line}\n")


def test_help_lists_the_datasets_and_imports_no_heavy_package():
    code = (
        "import sys; from launch import prepare; print(prepare.flags.FLAGS)\n"
        "print([name for name in ('tensorflow_datasets', 'cv2', 'jax') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "hitsz_vcm, bupt_campus, folder, synthetic_vcm, or" in result.stdout
    assert result.stdout.endswith("[]\n")


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("function", ["prepare", "check", "all_tracklets"])
def test_every_dataset_has_all_functions(name, function):
    assert callable(getattr(find_dataset(name, needs=function), function))


def test_unknown_datasets_are_refused():
    with pytest.raises(InputError, match="use hitsz_vcm, bupt_campus, folder, or package"):
        find_dataset("synthetic_vcm", needs="all_tracklets")
