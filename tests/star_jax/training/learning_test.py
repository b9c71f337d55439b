"""Training learns: the loss falls, people are found, and a fault that would prevent it is noticed.

Eight synthetic people, two tracklets of each modality to train on and two to test. Some faults
hardly change the scores of a small network; each of these has a check of its own.
"""

import dataclasses
import functools
import json
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simplejpeg
import tiny

from data_pipelines import schema
from data_pipelines.coco17 import MIRROR
from data_pipelines.loader import train_batches
from data_pipelines.records import packing
from data_pipelines.records.dataset import open_dataset
from data_pipelines.records.source import Source
from data_pipelines.sampling import BatchSpec, ClipSpec
from data_pipelines.synthetic import generate
from data_pipelines.synthetic.plan import SIZES, PlannedTracklet
from star_jax import augment
from star_jax.distributed.parallel import make_mesh
from star_jax.embedding.embed import embed_split
from star_jax.embedding.step import make_embed_step
from star_jax.evaluation.retrieval import evaluate_retrieval
from star_jax.models import build_model
from star_jax.network import Network
from star_jax.state import TrainState
from star_jax.training import loop, preparation, steps

PEOPLE, TRACKLETS, FRAMES = 8, 2, 4  # tracklets of each person, modality and split
STEPS = 60
HEIGHT, WIDTH = 64, 48
DEMO = dataclasses.replace(SIZES["demo"], height=HEIGHT, width=WIDTH)
NETWORKS = {"STAR": tiny.config, "baseline": tiny.baseline}


def pack(source, tracklets):
    """Packs tracklets: splits of lists of identity, modality, camera, frames and keypoints."""
    splits = {}
    with generate.new_root(source, {"generator": "learning_test"}) as root:
        for split, rows in tracklets.items():
            splits[split] = []
            for row, (identity, modality, camera, frames, keypoints) in enumerate(rows, start=1):
                names = [f"{split}/{row}/{number}" for number in range(len(frames))]
                for folder in (root / split / str(row), root / "skeletons" / split / str(row)):
                    folder.mkdir(parents=True)
                for name, frame, skeleton in zip(names, frames, keypoints, strict=True):
                    picture = simplejpeg.encode_jpeg(frame, 95, colorspace="RGB")
                    (root / f"{name}.jpg").write_bytes(picture)
                    np.save(root / "skeletons" / f"{name}.npy", skeleton)
                paths = tuple(f"{name}.jpg" for name in names)
                splits[split].append(schema.Tracklet(modality, identity, camera, paths, row))

    return packing.prepare(Source(source, splits), source.parent, "drawn/1.0.0")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    tracklets = {"train": [], "test": []}
    for identity in range(1, PEOPLE + 1):
        for number, modality in enumerate((schema.VISIBLE, schema.INFRARED) * 2 * TRACKLETS):
            camera = 1 + number  # each from another direction
            planned = PlannedTracklet("train", camera, identity, modality, camera, 1, 1, FRAMES)
            drawn = generate.draw_tracklet(DEMO, 0, planned)
            rows = tracklets["train" if number < 2 * TRACKLETS else "test"]
            rows.append((str(identity), modality, camera, drawn.frames, drawn.keypoints))
    return pack(tmp_path_factory.mktemp("people") / "source", tracklets)


class Run(NamedTuple):
    """What a training run leaves."""

    config: object
    losses: list[float]
    report: dict
    before: dict  # parameters
    state: TrainState


@pytest.fixture
def train(people, tmp_path, monkeypatch):
    """Returns a function that trains a network on one device and evaluates it at the end."""
    monkeypatch.setattr(preparation, "make_mesh", lambda _: make_mesh(devices=jax.devices()[:1]))

    def train_one(network, num_steps=STEPS, **optim):
        config = NETWORKS[network](people)
        config.model.num_identities = PEOPLE
        config.data.identities_per_batch, config.data.tracklets_per_identity = PEOPLE, TRACKLETS
        config.optim.update(
            {"lr": 0.1, "backbone_lr": 0.1, "clip_norm": 5.0, "warmup_epochs": 0, **optim}
        )
        config.optim.update({"decay_epochs": (), "epochs": num_steps})  # of one step
        config.eval.update({"protocol": "cross-modality", "every_epochs": num_steps})
        config.checkpoint.every_steps = num_steps
        before = {}
        start = preparation.starting_state

        def starting_state(*arguments):
            state = start(*arguments)
            before.update(jax.tree.map(np.array, state.params))
            return state

        with monkeypatch.context() as patch:
            patch.setattr(preparation, "starting_state", starting_state)
            state = loop.train(config, tmp_path / "run")
        rows = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
        losses = [row["loss/total"] for row in map(json.loads, rows) if "loss/total" in row]
        (report,) = (tmp_path / "run/eval").glob("*.json")
        return Run(config, losses, json.loads(report.read_text()), before, state)

    return train_one


@functools.cache
def chance():
    """Returns the mAP of random rankings, in percent."""
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(PEOPLE), TRACKLETS)
    draws = rng.normal(size=(500, len(ids), len(ids))).astype(np.float32)
    found = [evaluate_retrieval(draw, query_ids=ids, gallery_ids=ids).mean_ap for draw in draws]
    return 100 * np.mean(found)


# --- what must hold


def require_learned(run):
    assert len(run.losses) == STEPS
    assert np.mean(run.losses[-5:]) < np.mean(run.losses[:5]) / 2
    for direction in ("i2v", "v2i"):
        assert run.report[direction]["queries"] == PEOPLE * TRACKLETS
        assert run.report[direction]["map"] > 2 * chance()


def require_each_parameter_trained(run):
    after = jax.device_get(run.state.params)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), run.before, after)
    assert [path for path, far in jax.tree.leaves_with_path(moved) if not far > 0] == []


def require_no_dropout(run):
    """Requires that the rates of dropout do not change embeddings, and nor does a repetition."""
    mesh = make_mesh(devices=jax.devices()[:1])
    split = open_dataset(run.config.data.dir).split("test")
    without = run.config.copy_and_resolve_references()
    without.model.dropout_rate = without.model.attention_dropout_rate = 0.0
    assert run.config.model.dropout_rate > 0 and run.config.model.attention_dropout_rate > 0
    first, again, expected = (
        embed_split(Network(0, config, build_model(config.model), run.state.variables, mesh), split)
        for config in (run.config, run.config, without)
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, expected)


def require_joints_on_their_pixels(folder):
    """Requires that training sees each joint where it was painted, after loading and augmentation.

    Both joints of a mirrored pair have one shade, so that it does not matter which of them is left.
    """
    shades = 30 + 13 * np.minimum(np.arange(17), MIRROR)
    rng = np.random.default_rng(0)
    rows = []
    for identity in range(4):
        for modality in (schema.VISIBLE, schema.INFRARED):
            frames = np.zeros((FRAMES, 3 * HEIGHT // 2, 3 * WIDTH // 2, 3), np.uint8)  # are resized
            keypoints = np.ones((FRAMES, 17, 3), np.float32)
            for frame, joints in zip(frames, keypoints, strict=True):
                cells = rng.choice(7 * 5, 17, replace=False)
                joints[:, 0], joints[:, 1] = 9 + 13 * (cells % 5), 7 + 13 * (cells // 5)
                for (x, y, _), shade in zip(joints.astype(int), shades, strict=True):
                    frame[y - 5 : y + 6, x - 5 : x + 6] = shade
            rows.append((str(identity), modality, 1 + modality, frames, keypoints))
    config = tiny.config(pack(folder / "source", {"train": rows}))
    config.augment.update({"erasing_probability": 0.0, "style": False})
    (batch,) = train_batches(
        open_dataset(config.data.dir).split("train"),
        ClipSpec(FRAMES, (HEIGHT, WIDTH)),
        BatchSpec(seed=0, identities=4, tracklets=2),
        range(1),
    )
    step = jax.jit(lambda key, batch: steps.augmented(key, batch, config.augment))
    frames, keypoints = jax.device_get(step(jax.random.key(0), batch))
    black = augment.normalize(np.zeros((1, 1, 1, 1, 3), np.uint8))
    white = augment.normalize(np.full((1, 1, 1, 1, 3), 255, np.uint8))
    seen = (frames - np.asarray(black)[0]) / (np.asarray(white) - np.asarray(black))[0] * 255
    x, y = np.moveaxis(keypoints[..., :2].round().astype(int), -1, 0)
    inside = (x >= 2) & (x < WIDTH - 2) & (y >= 2) & (y < HEIGHT - 2)
    pair, time, modality = np.indices(x.shape)[:3]
    found = seen[pair, time, modality, y.clip(0, HEIGHT - 1), x.clip(0, WIDTH - 1)].mean(-1)
    assert inside.mean() > 0.8
    np.testing.assert_array_less(np.abs(found - shades)[inside], 6)


# --- it holds


def test_star_learns(train):
    run = train("STAR")
    require_learned(run)
    require_each_parameter_trained(run)
    require_no_dropout(run)
    assert run.report["dataset"]["synthetic"] is True


def test_the_baseline_learns(train):
    run = train("baseline")
    require_learned(run)
    require_each_parameter_trained(run)


def test_joints_stay_on_their_pixels_from_records_to_the_network(tmp_path):
    require_joints_on_their_pixels(tmp_path)


# --- and would not with these faults


@pytest.mark.slow
def test_labels_of_other_frames_are_noticed(train, monkeypatch):
    rng = np.random.default_rng(0)

    def shuffled(*arguments, **options):
        for batch in train_batches(*arguments, **options):
            yield {**batch, "labels": rng.permutation(batch["labels"])}

    monkeypatch.setattr(loop, "train_batches", shuffled)
    run = train("baseline")
    with pytest.raises(AssertionError):
        require_learned(run)
    assert np.mean(run.losses[-5:]) > np.mean(run.losses[:5]) / 2
    assert min(run.report[direction]["map"] for direction in ("i2v", "v2i")) < 2 * chance()


@pytest.mark.slow
@pytest.mark.parametrize("rates", [{"backbone_lr": 0.0}, {"lr": 1e-30}])
def test_a_learning_rate_of_zero_is_noticed(train, rates):
    run = train("baseline", num_steps=2, **rates)
    with pytest.raises(AssertionError):
        require_each_parameter_trained(run)


@pytest.mark.slow
def test_dropout_in_evaluation_is_noticed(train, monkeypatch):
    run = train("STAR", num_steps=1)

    def always(self, inputs):
        kept = jax.random.bernoulli(jax.random.key(0), 1 - self.rate, inputs.shape)
        return jnp.where(kept, inputs / (1 - self.rate), 0)

    monkeypatch.setattr(nn.Dropout, "__call__", always)
    make_embed_step.cache_clear()
    with pytest.raises(AssertionError):
        require_no_dropout(run)
    make_embed_step.cache_clear()


@pytest.mark.slow
def test_joints_that_are_mirrored_alone_are_noticed(tmp_path, monkeypatch):
    right = augment.random_crop_and_flip

    def wrong(key, frames, keypoints, *, flip_probability, **options):
        _, keypoints = right(key, frames, keypoints, flip_probability=flip_probability, **options)
        frames, _ = right(key, frames, keypoints, flip_probability=0.0, **options)
        return frames, keypoints

    monkeypatch.setattr(augment, "random_crop_and_flip", wrong)
    with pytest.raises(AssertionError):
        require_joints_on_their_pixels(tmp_path)
