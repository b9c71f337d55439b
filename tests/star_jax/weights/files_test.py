"""Files of weights: what is read from them, and what is rejected."""

import builtins
import json
import os
import struct
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipelines.errors import InputError
from star_jax import load_weights
from star_jax.weights import load_archive, load_arrays

ARRAYS = {
    "conv1.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bn1.bias": np.array([1.5], np.float32),
}


def assert_arrays(actual):
    assert set(actual) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(actual[name], array)


def test_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(ARRAYS, path)
    assert_arrays(load_arrays(path))
    assert_arrays(load_arrays(str(path)))


def test_a_missing_file_is_named(tmp_path):
    for name in ("weights.safetensors", "weights.pth"):
        with pytest.raises(FileNotFoundError, match=f"no weights at .*{name}"):
            load_arrays(tmp_path / name)
    with pytest.raises(InputError, match=f"^{tmp_path}: "):
        load_arrays(tmp_path)


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **ARRAYS)
    with pytest.raises(ValueError, match=r"weights\.npz: use a \.safetensors or a \.pth file"):
        load_arrays(path)


def safetensors_file(header, content):
    """Returns a file by the format's specification: header length, header, arrays."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + content


def safetensors_of(dtype, shape, content):
    facts = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}
    return safetensors_file({"bn1.bias": facts}, content)


BROKEN_SAFETENSORS = {
    "text": b"not a safetensors file",
    "empty": b"",
    "half a length": b"\0\0\0",
    "a length beyond the end": struct.pack("<Q", 2**20) + b"{}",
    "a huge length": struct.pack("<Q", 2**63) + b"{}",
    "a cut header": safetensors_of("F32", [2], bytes(8))[:40],
    "cut arrays": safetensors_of("F32", [2], bytes(8))[:-3],
    "more than the arrays": safetensors_of("F32", [2], bytes(8)) + b"x",
    "another shape": safetensors_of("F32", [3], bytes(8)),
    "a shape of text": safetensors_of("F32", ["2"], bytes(8)),
    "an unknown type": safetensors_of("F31", [2], bytes(8)),
    "deep": safetensors_file(b"[" * 100_000, b""),
    "null": safetensors_file(b"null", b""),
}


@pytest.mark.parametrize("content", BROKEN_SAFETENSORS.values(), ids=BROKEN_SAFETENSORS.keys())
def test_a_broken_safetensors_file_is_named(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: ") as error:
        load_arrays(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


HALVES = {  # 1, -2, 0.15625 and the largest number of each type, by hand
    "BF16": ([0x3F80, 0xC000, 0x3E20, 0x7F7F], 3.3895314e38),
    "F16": ([0x3C00, 0xC000, 0x3100, 0x7BFF], 65504.0),
}


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_become_float32(tmp_path, dtype):
    bits, largest = HALVES[dtype]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors_of(dtype, [2, 2], struct.pack("<4H", *bits)))
    array = load_arrays(path)["bn1.bias"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, np.array([[1, -2], [0.15625, largest]], np.float32))


def test_doubles_become_float32_and_integers_stay(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": np.array([0.1]), "n": np.array(7), "e": np.zeros((0, 2), np.float32)}, path)
    arrays = load_arrays(path)
    assert arrays["a"] == np.float32(0.1) and arrays["a"].dtype == np.float32
    assert arrays["n"] == 7 and arrays["n"].dtype == np.int64
    assert arrays["e"].shape == (0, 2)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_types_of_eight_bits_are_refused(tmp_path, dtype):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors_of(dtype, [2], b"\x38\x38"))
    message = rf"^{path}: bn1\.bias is of type {dtype}; convert it to float32"
    with pytest.raises(InputError, match=message):
        load_arrays(path)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("F32", struct.pack("<f", np.nan)),
        ("F32", struct.pack("<f", -np.inf)),
        ("F64", struct.pack("<d", 1e300)),  # infinite in float32
        ("BF16", b"\x80\x7f"),
        ("F16", b"\x00\x7e"),
    ],
)
def test_weights_that_are_not_finite_are_refused(tmp_path, dtype, value):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors_of(dtype, [3], bytes(2 * len(value)) + value))
    with pytest.raises(InputError, match=rf"^{path}: bn1\.bias contains NaN or Inf"):
        load_arrays(path)


def test_a_negative_variance_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"bn1.running_var": np.array([1, -1e-9], np.float32), "a": -np.ones(3)}, path)
    with pytest.raises(InputError, match=rf"^{path}: bn1\.running_var "):
        load_arrays(path)


STAND_INS = {
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 102170000\n",
    "web page": b"\xef\xbb\xbf\n<!DOCTYPE HTML><title>Sign in</title>",
    "download it again": b"<html><body>Too many requests</body></html>",
    "empty": b"",
}


@pytest.mark.parametrize("advice", STAND_INS)
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_what_was_saved_in_place_of_weights_is_named(tmp_path, name, advice):
    (tmp_path / name).write_bytes(STAND_INS[advice])
    for load in (load_arrays, load_archive):
        with pytest.raises(InputError, match=rf"{name}: .*{advice}"):
            load(tmp_path / name)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_only_regular_files_are_opened(tmp_path, name, make):
    make(tmp_path / name)
    for load in (load_arrays, load_archive, load_weights)[: 2 if name.endswith("pth") else 3]:
        before = time.monotonic()
        with pytest.raises(InputError, match=f"{name}: is a folder, a pipe or a device"):
            load(tmp_path / name)
        assert time.monotonic() - before < 5


def test_pth_of_halves(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.tensor([1.0, -2.0, 0.15625], dtype=torch.bfloat16)}, path)
    assert load_arrays(path)["a"].tolist() == [1, -2, 0.15625]
    torch.save({"a": torch.zeros(2).to(torch.float8_e5m2)}, path)
    with pytest.raises(InputError, match=r"weights\.pth: a is of type torch\.float8_e5m2"):
        load_arrays(path)
    torch.save({"a": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(InputError, match=r"weights\.pth: a contains NaN or Inf"):
        load_arrays(path)


def test_a_pth_without_pytorch_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"x")
    plain_import = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(ImportError, match=r"weights\.pth: reading a \.pth needs PyTorch"):
        load_arrays(path)


PREFIXES = ["module.", "_orig_mod.", "backbone.", "model.", "encoder.", "module.model.backbone."]


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cu121"])
def test_a_pytorch_that_runs_code_of_files_is_not_asked(tmp_path, monkeypatch, version):
    (tmp_path / "weights.pth").write_bytes(b"x")
    torch = types.SimpleNamespace(__version__=version, load=lambda *_, **__: pytest.fail("asked"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(ImportError, match=r"weights\.pth: .*2\.6"):
        load_arrays(tmp_path / "weights.pth")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_programs_of_training_put_before_all_names_is_removed(tmp_path, prefix):
    path = tmp_path / "weights.safetensors"
    save_file({f"{prefix}{name}": array for name, array in ARRAYS.items()}, path)
    assert_arrays(load_arrays(path))
    save_file({f"{prefix}x": np.ones(2), "head": np.ones(1)}, path)
    assert set(load_arrays(path)) == {f"{prefix}x", "head"}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_pth(tmp_path, nested, prefix):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    tensors = {f"{prefix}{name}": torch.from_numpy(array) for name, array in ARRAYS.items()}
    torch.save({"state_dict": tensors, "epoch": 3} if nested else tensors, path)
    assert_arrays(load_arrays(path))


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_malicious_pth_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    torch.save({"conv1.weight": Malicious(trace)}, path)
    with pytest.raises(ValueError, match=r"weights\.pth: not a file of plain arrays"):
        load_arrays(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file is not malicious"


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], "text"])
def test_a_pth_of_anything_but_arrays_is_named(tmp_path, content):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"weights\.pth"):
        load_arrays(path)
