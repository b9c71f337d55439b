"""Parts of another package by config alone: those of the pages in docs/how_to."""

import functools
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import simplejpeg
import tiny
from etils import epath

import star_jax
from data_pipelines.errors import InputError
from data_pipelines.records.dataset import open_dataset
from star_jax.distributed import parallel
from star_jax.evaluation.evaluate import evaluate_checkpoint
from star_jax.models import FrameFeatures, Skeletons, build_model
from star_jax.network import load_weights
from star_jax.runs import checkpoint
from star_jax.state import abstract_state
from star_jax.training import loop, steps

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs/how_to").glob("*.md"))
NO_PARTS = ("sys:exit", "builtins:dict", "subprocess:Popen", "os:system")
IN_TUPLES = {  # how the keys that take several parts name one
    "losses.extra": lambda name: ((name, 1.0),),
    "augment.parts": lambda name: ("normalize", name),
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The documentation's examples: the code of a page is the module `my_package.<page>`."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "my_package").mkdir()
    for page in PAGES:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        code = "\n\n".join(blocks)
        if code:
            (folder / "my_package" / f"{page.stem}.py").write_text(code)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The files of docs/how_to/dataset.md: nine people, two tracklets of each modality."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    for person, split in enumerate(["train"] * 6 + ["test"] * 3):
        for camera, modality in enumerate("vvii", start=1):
            for frame in (9, 10, 11, 101, 102):
                name = f"{split}/{person:04}_c{camera}{modality}_s1_{frame:06}"
                picture = rng.integers(0, 256, (64, 48, 3)).astype(np.uint8)
                skeleton = rng.uniform(1, 48, (17, 3)).astype(np.float32)
                for path in (folder / name, folder / "skeletons" / name):
                    path.parent.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}.jpg").write_bytes(simplejpeg.encode_jpeg(picture))
                np.save(folder / "skeletons" / f"{name}.npy", skeleton)
    return folder


@pytest.fixture(scope="module")
def packed(package, source):
    subprocess.run(
        [
            *(sys.executable, "launch/prepare.py", "--dataset=my_package.dataset:NAMED_FILES"),
            *(f"--source={source}", f"--data_dir={source / 'data'}"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(package)])},
        check=True,
    )
    return source / "data/named_files/1.0.0"


@pytest.mark.slow
def test_the_dataset_of_the_documentation_reads_its_names(packed, package, source, monkeypatch):
    index = open_dataset(packed).split("test").index
    assert index.identities.tolist() == [f"{person:04}" for person in (6, 7, 8) for _ in range(4)]
    assert index.cameras.tolist() == [1, 2, 3, 4] * 3
    assert index.modalities.tolist() == [0, 0, 1, 1] * 3
    assert set(index.num_frames) == {5} and not index.missing_skeletons.any()
    record = open_dataset(packed).split("test").records[5]
    assert record["frame_ids"][1:4] == [
        f"test/0007_c2v_s1_{frame:06}.jpg" for frame in (10, 11, 101)
    ]
    monkeypatch.syspath_prepend(str(package))
    (source / "test" / "nobody.jpg").touch()
    from my_package.dataset import NAMED_FILES

    with pytest.raises(InputError, match=r"test/nobody\.jpg"):
        NAMED_FILES.prepare(source, source / "again")
    (source / "test" / "nobody.jpg").unlink()


def config_of(packed, base=tiny.config, **model):
    config = base(packed)
    config.model.num_identities = None
    config.model.backbone_options = {}
    config.optim.epochs = 3  # of one step each
    config.optim.warmup_epochs = 1
    config.checkpoint.every_steps = 1
    config.augment.style = False
    config.model.update(model)
    return config


def rows_of(workdir):
    return [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_three_steps_with_parts_of_another_package(package, packed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(package))
    config = config_of(
        packed, backbone="my_package.backbone:PatchNet", pooling="my_package.pooling:TopTwo"
    )
    config.model.backbone_options = {"width": 8}
    config.losses.extra = (
        ("my_package.loss:CenterLoss", 0.1),
        ("my_package.loss:modality_gap", 0.1),
    )
    config.augment.parts = ("my_package.augmentation:random_gray", "normalize", "erasing")
    config.optim.optimizer = "my_package.optimizer:lion"
    config.optim.schedule = "my_package.optimizer:inverse_root"
    config.data.sampling = "my_package.sampler:CONSECUTIVE"
    config.eval.protocol = "my_package.protocol:ANY_CAMERA"
    config.eval.every_epochs = 3
    state = loop.train(config, tmp_path / "run")
    assert int(state.step) == 3
    assert set(state.params["backbone"]) == {"stem_visible", "stem_infrared", "shared"}
    centers = np.asarray(state.losses["centers"]["CenterLoss"]["mean"])
    assert centers.shape == (6, 8) and np.abs(centers).max(1).min() >= 0 and centers.any()
    training = [row for row in rows_of(tmp_path / "run") if "loss/CenterLoss" in row]
    assert len(training) == 3 and all(row["loss/CenterLoss"] > 0 for row in training)
    assert all(0 < row["loss/modality_gap"] < 4 for row in training)  # of vectors of length 1

    # What the run has stored names code of others, which only those who trust it run again.
    for refused in (load_weights, lambda run: load_weights(run, trusted=("my",))):
        with pytest.raises(InputError, match=r"config\.[a-z.]+ is 'my_package\."):
            refused(tmp_path / "run")
    assert load_weights(tmp_path / "run", trusted=("my_package",)).step == 3
    evaluated = epath.Path(tmp_path / "run")
    report, _ = evaluate_checkpoint(evaluated, None, flip=True, trusted=("my_package",))
    assert report["protocol"] == "my_package.protocol:ANY_CAMERA"
    export = [sys.executable, "launch/export.py", f"--workdir={tmp_path / 'run'}"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(package)])}
    for trusted, code in (("", 1), ("other, my_package", 0)):
        command = [*export, f"--trusted={trusted}"]
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
    with pytest.raises(InputError, match=r"config\.[a-z.]+ is 'my_package\."):
        load_weights(tmp_path / "run/export/3.safetensors")
    rates = [row["learning_rate"] / config.optim.lr for row in training]
    np.testing.assert_allclose(rates, [1, 0.5**0.5, 3**-0.5], rtol=1e-5)

    # The state of the loss is in the checkpoint, and what is restored is what was saved.
    config.model.num_identities = 6
    abstract = abstract_state(config, build_model(config.model), 1, parallel.make_mesh(config))
    with checkpoint.open_manager(tmp_path / "run", keep=None) as manager:
        assert manager.all_steps() == [2, 3]
        restored, _ = checkpoint.restore_state(manager, abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "options", "style"),
    [
        ("resnet50_ibn_a", {"stage_sizes": (1, 1, 1, 1), "width": 4}, True),
        ("vit_tiny", {"width": 12, "depth": 2}, False),
    ],
)
def test_three_steps_with_each_family_of_backbones(packed, tmp_path, backbone, options, style):
    config = config_of(packed, base=tiny.baseline, backbone=backbone)
    config.model.backbone_options = options
    config.augment.style = style
    state = loop.train(config, tmp_path / "run")
    losses = [row["loss/total"] for row in rows_of(tmp_path / "run")]
    assert int(state.step) == len(losses) == 3 and np.isfinite(losses).all()

    # With skeletons, whose steps take long to compile, it is the same backbone.
    config.model.update(guidance="frame", pooling="guided", num_identities=6)
    guided = abstract_state(config, build_model(config.model), 1, parallel.make_mesh(config))
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)  # noqa: E731
    assert shapes(guided.params["backbone"]) == shapes(state.params["backbone"])


def test_an_augmentation_sees_pixels_before_normalization_and_normalized_ones_after(
    package, monkeypatch
):
    """The example of the documentation makes half of the visible tracklets gray."""
    monkeypatch.syspath_prepend(str(package))
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    painted = np.array([200, 40, 60])
    color = (painted / 255 - mean) / deviation
    frames = np.broadcast_to(painted.astype(np.uint8), (32, 1, 2, 4, 3, 3))
    batch = {"frames": frames, "keypoints": np.zeros((32, 1, 2, 17, 3), np.float32)}
    config = tiny.config("nowhere").augment
    for parts, gray in (
        (("my_package.augmentation:random_gray", "normalize"), (100 / 255 - mean) / deviation),
        (("normalize", "my_package.augmentation:random_gray"), [color.mean()] * 3),
    ):
        config.parts = parts
        found = np.asarray(steps.augmented(jax.random.key(0), batch, config)[0])
        near = lambda colors, color: np.isclose(colors, color, rtol=1e-4).all((1, 2, 3, 4))  # noqa: E731
        visible, infrared = found[:, :, 0], found[:, :, 1]
        assert near(infrared, color).all()
        np.testing.assert_array_equal(near(visible, gray), ~near(visible, color))
        assert 6 < near(visible, gray).sum() < 26


@pytest.mark.slow
def test_a_pose_guided_pooling_needs_a_config_alone(package, packed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(package))
    config = config_of(packed, base=tiny.baseline, pooling="my_package.pooling:BodyParts")
    config.model.backbone_options = {"stage_sizes": (1, 1, 1, 1), "width": 4}
    config.eval.every_epochs = 3
    state = loop.train(config, tmp_path / "run")
    assert int(state.step) == 3 and list((tmp_path / "run/eval").glob("3-*.json"))
    assert "keypoint_graph" not in state.params  # no skeleton branch
    assert state.params["classifier"]["kernel"].shape == (6 * 32, 6)  # the whole, and five parts

    network = star_jax.load_weights(tmp_path / "run", trusted=("my_package",))
    frames = np.random.default_rng(0).normal(size=(1, 2, 64, 48, 3)).astype(np.float32)
    joints = np.full((1, 2, 17, 3), 20, np.float32)
    embed = jax.jit(functools.partial(network.model.apply, modality="visible"))
    unseen = embed(network.variables, frames, joints * [1, 1, 0]).tracklet[0].reshape(6, 32)
    seen = embed(network.variables, frames, joints).tracklet[0].reshape(6, 32)
    np.testing.assert_allclose(seen[0], unseen[0], rtol=1e-5)
    assert (np.asarray(unseen[1:]) == 0).all() and (np.asarray(seen[1:]) > 0).any(1).all()


def test_samples_of_a_map_worked_out_by_hand(package, monkeypatch):
    monkeypatch.syspath_prepend(str(package))
    sample = importlib.import_module("my_package.pooling").sample
    cells = np.array([[1, 2, 4], [8, 16, 32]], np.float32)[..., None]
    expected = {
        (1 / 2, 1 / 4): 2,  # the center of a cell
        (1 / 3, 1 / 4): 1.5,  # on the border of two
        (2 / 3, 1 / 2): 13.5,  # where four meet
        (1 / 4, 5 / 8): 7.8125,  # a quarter of a cell right of, three quarters below a center
        (0, 0): 1,
        (1, 1): 32,
        (-3, 1 / 4): 1,
        (1 / 2, 2): 16,
    }
    points = np.array(list(expected), np.float32)
    found = jax.jit(sample)(np.stack([cells, 2 * cells])[None], np.stack([points, points])[None])
    assert found.shape == (1, 2, len(points), 1)
    values = list(expected.values())
    np.testing.assert_allclose(found[0, 0, :, 0], values, rtol=1e-5)
    np.testing.assert_allclose(found[0, 1, :, 0], 2 * np.array(values), rtol=1e-5)


def test_parts_of_the_body_are_weighted_by_confidence(package, monkeypatch):
    monkeypatch.syspath_prepend(str(package))
    pooling = importlib.import_module("my_package.pooling").BodyParts()
    maps = np.array([1, 5], np.float32).reshape(1, 2, 1, 1, 1)  # of two frames
    joints, detected = np.zeros((1, 2, 17, 3), np.float32), np.zeros((1, 2, 17), bool)
    joints[0, :, 13, 2], detected[0, :, 13] = (0.25, 0.75), True  # a knee
    joints[0, :, 5, 2] = 1  # a shoulder that is not detected
    features = FrameFeatures(maps[..., 0, 0, :] + 10, maps)
    pooled = pooling.apply({}, features, Skeletons(joints, detected))
    np.testing.assert_allclose(pooled, [[13, 0, 0, 0, 0.25 * 1 + 0.75 * 5, 0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.backbone": "my_package.pooling:TopTwo"}, "a backbone needs num_channels, num_st"),
        ({"model.backbone": "my_package.backbone:Nothing"}, "has no attribute 'Nothing'"),
        ({"model.pooling": "nowhere.parts:TopTwo"}, "No module named 'nowhere'"),
        ({"model.pooling": "my_package.backbone:PatchNet"}, "a pooling needs uses_keypoints, us"),
        ({"model.guidance": "my_package.backbone:PatchNet"}, "a guidance needs uses_keypoints, u"),
        ({"data.sampling": "my_package.pooling:TopTwo"}, r"config\.data\.sampling .* a Sampler"),
        ({"eval.protocol": "my_package.pooling:TopTwo"}, r"config\.eval\.protocol .* a Rules"),
        ({"model.backbone": "my_package.loss:modality_gap"}, r"config\.model\.backbone .* Flax"),
        (
            {"losses.extra": (("my_package.sampler:SAMPLERS", 1.0),)},
            r"config\.losses\.extra .* dict",
        ),
        *(
            (
                {key: IN_TUPLES.get(key, lambda value: value)(value)},
                f"config.{key} is '{value}'",
            )
            for key in (
                *("model.backbone", "model.guidance", "model.pooling"),
                *("data.sampling", "eval.protocol", "losses.extra"),
                *("optim.optimizer", "optim.schedule", "augment.parts"),
            )
            for value in NO_PARTS
        ),
        ({"augment.parts": ("normalize", "my_package.augmentation:No")}, "attribute 'No'"),
        ({"augment.parts": ("erasing",)}, r"augment\.parts is \('erasing',\): .* 'normalize'"),
        ({"optim.optimizer": "my_package.optimizer:No"}, "has no attribute 'No'"),
        ({"losses.extra": (("my_package.loss:No", 1.0),)}, "has no attribute 'No'"),
        ({"model.backbone_options": {"widht": 3}}, r"options\.widht does not exist: .* width"),
        ({"model.backbone_options": {"width": 0}}, "options.width is 0: use an integer from 1"),
        ({"model.backbone": "vit_tiny"}, "style_stages is .*vit_tiny has no stages; use --config"),
        ({"augment.style_stages": (2, 5)}, "the backbone resnet18 has 4 stages; use stages up to"),
    ],
)
def test_what_is_wrong_with_a_part_is_one_line(package, tmp_path, monkeypatch, changes, message):
    monkeypatch.syspath_prepend(str(package))
    config = config_of("nowhere")
    config.augment.style = True
    for key, value in changes.items():
        section, _, name = key.partition(".")
        config[section][name] = value
    with pytest.raises(InputError, match=message) as raised:
        loop.train(config, tmp_path / "run")
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()
