"""Serialized functions: they run without this library and compute what the network computes."""

import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from star_jax import augment
from star_jax.models import build_model
from star_jax.state import initial_variables
from star_jax.weights import to_stablehlo

pytestmark = pytest.mark.slow

SIZE, LENGTH = (64, 48), 2

# All that a program needs; anything of this library or Flax fails to import.
SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("star_jax", "data_pipelines", "flax", "orbax"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import jax.export
import numpy as np

with open("star.stablehlo", "rb") as file:
    embed = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
inputs = np.load("inputs.npz")
for b in (1, 3):
    embeddings = embed(*(inputs[name][:b] for name in inputs.files))
    np.save(f"embeddings{b}.npy", embeddings)
"""


def network(width=4, **parts):
    """Returns a network and random variables of it."""
    config = tiny.config("elsewhere")
    config.model.update(parts)
    config.model.backbone_options.width = width
    model = build_model(config.model)
    shapes = jax.eval_shape(lambda: initial_variables(config, model))
    rng = np.random.default_rng(1)
    draw = {
        "params": lambda x: rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape).astype("f4"),
        "batch_stats": lambda x: rng.uniform(0.5, 1.5, x.shape).astype("f4"),
    }
    return model, {name: jax.tree.map(draw[name], tree) for name, tree in shapes.items()}


def clips(number):
    """Returns frames and keypoints; the last keypoints are not detected."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (number, LENGTH, 8, 6, 3), np.uint8)
    frames = blocks.repeat(8, axis=2).repeat(8, axis=3)
    keypoints = rng.random((number, LENGTH, 17, 3), np.float32) * np.float32([48, 64, 1])
    keypoints[-1, -1] = 0
    return frames, keypoints


WITHOUT_SKELETONS = {"guidance": "none", "pooling": "gem"}


@pytest.mark.parametrize(
    ("parts", "modality"), [({}, "infrared"), (WITHOUT_SKELETONS, "visible")], ids=str
)
def test_the_function_runs_alone_and_embeds_as_the_network(parts, modality, tmp_path):
    model, variables = network(**parts)
    content = to_stablehlo(model, variables, modality, frame_size=SIZE, clip_length=LENGTH)
    (tmp_path / "star.stablehlo").write_bytes(content)
    frames, keypoints = clips(3)
    inputs = {"frames": frames, "keypoints": keypoints} if model.uses_skeletons else {"x": frames}
    np.savez(tmp_path / "inputs.npz", **inputs)
    assert len(SCRIPT.strip().splitlines()) <= 20
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, check=True)

    def apply(variables, frames, keypoints):
        return model.apply(variables, augment.normalize(frames), keypoints, modality=modality)

    expected = np.asarray(jax.jit(apply)(variables, frames, keypoints).embedding)
    for b in (1, 3):
        found = np.load(tmp_path / f"embeddings{b}.npy")
        assert found.dtype == np.float32 and found.shape == (b, 32)
        np.testing.assert_allclose(found, expected[:b], rtol=0, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # so that a swap of rows would show


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_function_is_for_any_batch_and_every_platform(dtype):
    model, variables = network(dtype=dtype)
    content = to_stablehlo(model, variables, "visible", frame_size=SIZE, clip_length=LENGTH)
    exported = jax.export.deserialize(bytearray(content))
    assert exported.platforms == ("cpu", "cuda", "tpu") and exported.nr_devices == 1
    shapes = [f"{x.dtype}{x.shape}" for x in (*exported.in_avals, *exported.out_avals)]
    assert shapes == ["uint8(b, 2, 64, 48, 3)", "float32(b, 2, 17, 3)", "float32(b, 32)"]
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", exported.mlir_module())
    of_float32 = [line for line in products if "bf16" not in line]
    assert len(of_float32) > 8
    assert all(line.count("HIGHEST") == 2 for line in of_float32)
    assert (len(of_float32) < len(products)) == (dtype == "bfloat16")


def test_the_file_has_the_weights_that_it_uses_once():
    model, variables = network(32, num_identities=50_000, **WITHOUT_SKELETONS)
    content = to_stablehlo(model, variables, "visible", frame_size=SIZE, clip_length=LENGTH)
    classifiers = sum(
        variables["params"][name]["kernel"].nbytes for name in ("classifier", "frame_classifier")
    )
    used = sum(x.nbytes for x in jax.tree.leaves(variables)) - classifiers
    assert 0.95 * used < len(content) < 1.05 * used + 100_000 < classifiers


def test_a_network_without_skeletons_takes_frames_alone():
    model, variables = network(**WITHOUT_SKELETONS)
    content = to_stablehlo(model, variables, "visible", frame_size=SIZE, clip_length=LENGTH)
    exported = jax.export.deserialize(bytearray(content))
    assert [f"{x.dtype}{x.shape}" for x in exported.in_avals] == ["uint8(b, 2, 64, 48, 3)"]
