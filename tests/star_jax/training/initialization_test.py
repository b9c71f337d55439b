"""What training starts from: the weights of another network."""

import logging

import jax
import numpy as np
import pytest
import tiny

from data_pipelines.errors import InputError
from star_jax.distributed import parallel
from star_jax.models import build_model
from star_jax.network import load_weights
from star_jax.state import abstract_state
from star_jax.training import initialization, loop, preparation
from star_jax.weights import save_archive

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the folder of a run without skeletons, on six identities."""
    return tiny.saved_run(tmp_path_factory.mktemp("run"), tiny.baseline("elsewhere"))


def started(path, base=tiny.baseline, **model):
    """Returns a state of random weights before and after it takes those of a network."""
    config = base("nowhere")
    config.model.update(model)
    config.init.checkpoint = str(path)
    shapes = abstract_state(config, build_model(config.model), 1, parallel.make_mesh(config))
    fresh = tiny.random_state(shapes, seed=1)
    return fresh, initialization.with_network(fresh, config)


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


@pytest.mark.parametrize("place", ["", "checkpoints/0", "star.safetensors"])
def test_the_same_network_is_taken_whole(run, place, tmp_path, caplog):
    given = load_weights(run)
    path = run / place
    if place == "star.safetensors":
        path = tmp_path / place
        save_archive(path, config=given.config, variables=given.variables, step=0)
    caplog.set_level(logging.INFO, logger="star_jax")
    fresh, state = started(path)
    assert_same(state.variables, given.variables)
    for name in ("step", "opt_state", "losses"):
        assert_same(getattr(state, name), getattr(fresh, name))
    same_place = lambda old, new: old.sharding == new.sharding  # noqa: E731
    assert all(jax.tree.leaves(jax.tree.map(same_place, fresh.variables, state.variables)))
    taken, afresh, left = caplog.messages
    assert taken.startswith(f"starting from {path}, step 0: took backbone (")
    assert (afresh, left) == ("newly initialized: none", "left over: none")


def test_classifiers_of_another_number_of_identities_start_afresh(run, caplog):
    caplog.set_level(logging.INFO, logger="star_jax")
    fresh, state = started(run, num_identities=5)
    given = load_weights(run).variables
    for name in state.params:
        source = fresh.params if name in ("classifier", "frame_classifier") else given["params"]
        assert_same(state.params[name], source[name])
    assert_same(state.batch_stats, given["batch_stats"])
    assert caplog.messages[1:] == [
        "newly initialized: classifier (1), frame_classifier (1)",
        "left over: classifier (1), frame_classifier (1)",
    ]


def test_a_network_with_skeletons_takes_what_one_without_has(run, caplog):
    caplog.set_level(logging.INFO, logger="star_jax")
    fresh, state = started(run, tiny.config)
    given = load_weights(run).variables
    assert_same(state.params["backbone"], given["params"]["backbone"])
    skeleton = set(state.params) - set(given["params"])
    assert "skeleton_classifier" in skeleton
    for name in skeleton:
        assert_same(state.params[name], fresh.params[name])
        assert f"{name} (" in caplog.messages[1]


@pytest.mark.parametrize(
    ("model", "allowed"),
    [
        ({"backbone_options": {"width": 8}}, False),  # nothing fits at all
        # The stems and the running statistics fit, which are few of the weights.
        ({"backbone": "resnet50", "backbone_options": {"width": 4}}, True),
    ],
)
def test_a_network_with_another_backbone_is_refused(run, model, allowed):
    with pytest.raises(InputError, match=r"config\.init\.checkpoint") as caught:
        started(run, **model)
    message = str(caught.value)
    assert message.count("params/backbone/") == 3 and len(message) < 800
    assert ("config.init.other_backbone" in message) is allowed


def test_another_backbone_can_be_allowed(run):
    config = tiny.baseline("nowhere")
    config.model.update(backbone="vit_tiny", num_identities=6)
    config.model.backbone_options = {"width": 32, "num_heads": 2, "depth": 1}
    config.init.update(checkpoint=str(run), other_backbone=True)
    shapes = abstract_state(config, build_model(config.model), 1, parallel.make_mesh(config))
    fresh = tiny.random_state(shapes, seed=1)
    state = initialization.with_network(fresh, config)
    given = load_weights(run).variables
    assert_same(state.params["classifier"], given["params"]["classifier"])
    assert_same(state.params["backbone"], fresh.params["backbone"])
    config.model.backbone_options.width = 64  # then nothing fits
    shapes = abstract_state(config, build_model(config.model), 1, parallel.make_mesh(config))
    with pytest.raises(InputError, match=r"config\.init\.checkpoint"):
        initialization.with_network(tiny.random_state(shapes, seed=1), config)


def test_training_starts_from_it(run, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    seen = []

    class Step:
        def lower(self, state, batch):
            seen.append(state)
            raise Killed

    config = tiny.baseline(tiny.packed_dataset(tmp_path))
    config.init.checkpoint = str(run)
    monkeypatch.setattr(preparation, "make_train_step", lambda *_: Step())
    with pytest.raises(Killed):
        loop.train(config, tmp_path / "run")
    (state,) = seen
    assert int(state.step) == 0
    assert_same(state.variables, load_weights(run).variables)
