"""The lowered steps: every float32 product at the highest precision, bfloat16 where it belongs."""

import re
from importlib.util import find_spec

import jax
import numpy as np
import pytest

from configs import star_hitsz_vcm, star_hitsz_vcm_reference
from launch.tpu import compile as tpu_compile
from star_jax.distributed import parallel
from star_jax.embedding.step import make_embed_step
from star_jax.models import build_model
from star_jax.state import abstract_state
from star_jax.training import steps

CONFIGS = {"bfloat16": star_hitsz_vcm, "float32": star_hitsz_vcm_reference}
PLATFORMS = ["cpu", "tpu"]

# Products in config.model.dtype by docs/architecture.md. Inside loops the path is missing.
NARROW = r"/(backbone|edge_sequence/lstm|guidance|pooling)/|^\.\.\.dbh,dhg->\.\.\.dbg/"
# Some of the products in float32.
WIDE = ("edge_sequence/embed", "keypoint_graph/gat1", "keypoint_graph/...nk,nk->...n")
WIDE_IN_TRAINING = (*WIDE, "_classifier/", "/jvp(Losses)/", "/transpose(jvp(Losses))/")

OPERATION = re.compile(
    r"stablehlo\.(dot_general|convolution)\(?.* : \((.*?)\) -> .* loc\((#\w+)\)$"
)
LOCATION = re.compile(r'^(#\w+) = loc\("(.*?)"', re.MULTILINE)


def products(lowered):
    """Returns, for each product, operand dtypes, precisions and the path in the network."""
    text = lowered.as_text(debug_info=True)
    paths = dict(LOCATION.findall(text))
    for line in text.splitlines():
        if re.search(r"= stablehlo\.(dot|convolution)", line):
            match = OPERATION.search(line)
            assert match, line
            dtypes = re.findall(r"tensor<(?:\d+x)*(\w+)>", match[2])
            precisions = re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", line)
            assert len(dtypes) == len(precisions) == 2, line
            yield set(dtypes), set(precisions), paths[match[3]]


def lowered_steps(dtype, platform):
    config = CONFIGS[dtype].get_config()
    config.data.frame_size = (96, 64)
    config.data.clip_length = 2
    config.data.identities_per_batch = 4
    config.model.num_identities = 500
    config.model.backbone_options.update({"width": 8, "stage_sizes": (1, 1, 1, 1)})
    if platform == "tpu":
        devices = tpu_compile.topology_devices("v5e:2x4", "v5e", 8)
    else:
        devices = jax.devices()
    mesh = parallel.make_mesh(config, devices)
    model = build_model(config.model)
    state = abstract_state(config, model, 10, mesh)
    train_step = steps.make_train_step(config, model, 10, mesh)
    yield "train", train_step.lower(state, tpu_compile.abstract_batch(config, mesh))
    frames = jax.ShapeDtypeStruct((8, 2, 96, 64, 3), np.uint8)
    keypoints = jax.ShapeDtypeStruct((8, 2, 17, 3), np.float32)
    embed_step = make_embed_step(model, "infrared", mesh)
    yield "embed", embed_step.lower(state.variables, frames, keypoints)


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("dtype", CONFIGS)
def test_float32_products_are_float32(dtype, platform, monkeypatch):
    if platform == "tpu":
        if find_spec("libtpu") is None:
            pytest.skip("libtpu is not installed: nothing was lowered for a TPU")
        for name, value in tpu_compile.ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
    for step, lowered in lowered_steps(dtype, platform):
        found = list(products(lowered))
        assert len(found) > (100 if step == "train" else 30)
        for dtypes, precisions, path in found:
            narrow = dtype == "bfloat16" and re.search(NARROW, path)
            assert dtypes == {"bf16" if narrow else "f32"}, path
            assert precisions == {"DEFAULT" if narrow else "HIGHEST"}, path
        for part in WIDE_IN_TRAINING if step == "train" else WIDE:
            assert any(dtypes == {"f32"} and part in path for dtypes, _, path in found), part
