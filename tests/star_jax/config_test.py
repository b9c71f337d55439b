"""The schema of a config: what it rejects, what it accepts, and its documentation."""

import contextlib
import importlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from configs import star_hitsz_vcm
from data_pipelines import sampling
from data_pipelines.errors import InputError
from launch.tpu import compile as tpu_compile
from star_jax import augment, optim
from star_jax.config import as_config
from star_jax.config.__main__ import markdown
from star_jax.config.checks import plain
from star_jax.config.experiment import ADDED_KEYS, KEYS, SECTIONS
from star_jax.config.values import BELOW_ONE, part
from star_jax.distributed import parallel
from star_jax.evaluation import protocols
from star_jax.losses import LOSSES
from star_jax.models import Star, backbones, build_model, guidance, pooling, resnet
from star_jax.state import abstract_state, initial_variables
from star_jax.training import steps
from star_jax.training.loop import train

ROOT = Path(__file__).parents[2]


def by_dots(config, section=""):
    """Returns the values of a config by the keys of its schema."""
    for name, value in config.items():
        key = f"{section}{name}"
        if key in SECTIONS:
            yield from by_dots(value, f"{key}.")
        else:
            yield key, value


DEFAULTS = dict(by_dots(star_hitsz_vcm.get_config()))


def changed(**values):
    """Returns the tiny config with values of any type; `__` in a name stands for a dot."""
    config = tiny.config(Path("nowhere"))
    for key, value in values.items():
        *sections, name = key.split("__")
        section = config
        for outer in sections:
            section = section[outer]
        if name in section:
            del section[name]  # otherwise it would convert the value to its type
        section[name] = value
    return config


def at(key, value):
    return changed(**{key.replace(".", "__"): value})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("config") / "run"


def refused(config, workdir):
    """Returns the error message with which training rejects a config before writing anything."""
    with pytest.raises(InputError) as caught:
        train(config, workdir)
    assert not workdir.exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("star_*.py")))
def test_shipped_configs_are_valid(name):
    as_config(importlib.import_module(f"configs.{name}").get_config())


def test_lists_and_integers_are_valid_where_tuples_and_floats_are():
    config = changed(optim__lr=1, optim__decay_epochs=(), seed=2**32 - 1, optim__backbone_lr=0)
    as_config(config)
    from_json = ml_collections.ConfigDict(json.loads(config.to_json()))
    assert from_json.data.frame_size == [64, 48]
    as_config(from_json)
    as_config(changed(optim__decay_epochs=[3, 5]))
    as_config(changed(augment__flip_probability=0, augment__erasing_probability=1))


@pytest.mark.slow
def test_a_step_takes_integers_where_floats_belong():
    config = changed(
        **{
            key.replace(".", "__"): 0 if KEYS[key].values is BELOW_ONE else 1
            for key, value in DEFAULTS.items()
            if isinstance(value, float)
        }
    )
    as_config(config)
    mesh, model = parallel.make_mesh(config, jax.devices()[:1]), build_model(config.model)
    state = abstract_state(config, model, 1, mesh)
    batch = tpu_compile.abstract_batch(config, mesh)
    jax.eval_shape(steps.make_train_step(config, model, 1, mesh), state, batch)


def test_an_address_of_another_kind_is_refused(workdir):
    message = refused(changed(data__dir="s3://bucket/dataset"), workdir)
    assert message.startswith("s3://bucket/dataset: ") and "gs://" in message


NAN, INFINITY = float("nan"), float("inf")
AN_INTEGER = "use an integer of 1 or more"
A_PART = "use the name of a component or 'package.module:object'"
NONSENSE = [
    ("seed", -1, "use an integer from 0 to 4294967295"),
    ("seed", 2**32, "use an integer from 0 to 4294967295"),
    ("seed", 2**63, "use an integer from 0 to 4294967295"),
    ("seed", 10**5000, "use an integer from 0 to 4294967295"),
    ("seed", 0.5, "use an integer from 0 to 4294967295"),
    ("seed", True, "use an integer from 0 to 4294967295"),
    ("seed", np.int64(3), "use an integer from 0 to 4294967295"),
    ("log_every_steps", 0, AN_INTEGER),
    ("data.dir", "", "use printable text of 1 to 1000 characters"),
    ("data.dir", "a\0b", "use printable text"),
    ("data.dir", Path("data"), "use printable text"),
    ("data.sampling", "mars", "use hitsz_vcm, bupt_campus, or package.module:object"),
    ("data.frame_size", (0, 48), "use a tuple of 2 integers from 17 to 4096"),
    ("data.frame_size", (64, -48), "use a tuple of 2 integers from 17 to 4096"),
    ("data.frame_size", (16, 48), "use a tuple of 2 integers from 17 to 4096"),
    ("data.frame_size", (64.0, 48), "use a tuple of 2 integers from 17 to 4096"),
    ("data.frame_size", (64, 48, 3), "use a tuple of 2 integers from 17 to 4096"),
    ("data.frame_size", "64x48", "use a tuple of 2 integers from 17 to 4096"),
    ("data.frame_size", 64, "use a tuple of 2 integers from 17 to 4096"),
    ("data.clip_length", 0, "use an integer from 1 to 1024"),
    ("data.clip_length", -2, "use an integer from 1 to 1024"),
    ("data.clip_length", 2.5, "use an integer from 1 to 1024"),
    ("data.identities_per_batch", 1, "use an integer from 2 to 65536"),
    ("data.identities_per_batch", 0, "use an integer from 2 to 65536"),
    ("data.identities_per_batch", 7, "use at most 6, which is config.model.num_identities"),
    ("data.tracklets_per_identity", 0, "use an integer from 1 to 65536"),
    ("data.tracklets_per_identity", "2", "use an integer from 1 to 65536"),
    ("data.validation_identities", -1, "use an integer of 0 or more"),
    ("data.num_threads", 0, "use an integer from 1 to 256"),
    ("data.num_threads", 1.5, "use an integer from 1 to 256"),
    ("augment.parts", ("erasing",), "use a tuple of different component names"),
    ("augment.parts", ("normalize", "normalize"), "with 'normalize'"),
    ("augment.parts", ("normalize", ["erasing"]), "with 'normalize'"),
    ("augment.parts", "normalize", "with 'normalize'"),
    ("augment.parts", ("erasing", "normalize"), "use 'normalize' before 'erasing'"),
    ("augment.parts", ("style", "normalize"), "use 'normalize' before 'style'"),
    ("augment.parts", ("normalize", "crop_and_flip"), "use 'crop_and_flip' before 'normalize'"),
    ("augment.padding", 100000, "use an integer from 0 to 4095"),
    ("augment.padding", 48, "use less than 48"),
    ("augment.padding", -1, "use an integer from 0 to 4095"),
    ("augment.flip_probability", -1, "use a number from 0 to 1"),
    ("augment.flip_probability", 2, "use a number from 0 to 1"),
    ("augment.erasing_probability", NAN, "use a number from 0 to 1"),
    ("augment.per_frame", 1, "use True or False"),
    ("augment.move_keypoints", "no", "use True or False"),
    ("augment.style", None, "use True or False"),
    ("model.num_identities", 0, "use an integer from 2 to 10000000"),
    ("model.backbone", "dense", "use resnet18, resnet34, resnet50, resnet101"),
    ("model.backbone", ["resnet18"], A_PART),
    ("model.backbone", "a b:c", A_PART),
    ("model.backbone_options", 5, "use a section of options"),
    ("model.guidance", "all", "use frame, none, or package.module:object"),
    ("model.guidance", None, A_PART),
    ("model.pooling", "median", "use guided, gem, mean, max, or package.module:object"),
    ("model.gem_power", 0.5, "use a number of 1 or more"),
    ("augment.style_stages", (3, 2), "use a tuple of 2 ascending integers from 1 to 100"),
    ("augment.style_stages", (2,), "use a tuple of 2 ascending integers from 1 to 100"),
    ("losses.extra", ("a.b:c", 1.0), "use a tuple of pairs ('package.module:object', weight)"),
    ("losses.extra", (("a.b", 1.0),), "use a tuple of pairs ('package.module:object', weight)"),
    ("losses.extra", (("a.b:c", -1.0),), "use a tuple of pairs ('package.module:object', weight)"),
    ("model.keypoints", "absolute", "use 'relative' or 'pixels'"),
    ("model.graph_edges", "last_frame", "use 'every_frame' or 'first_frame'"),
    ("model.dropout_rate", 1, "use a number from 0 to below 1"),
    ("model.dropout_rate", 1 - 1e-12, "use a number from 0 to below 1"),  # 1 as a float32
    ("model.dropout_rate", -0.1, "use a number from 0 to below 1"),
    ("model.attention_dropout_rate", 1.5, "use a number from 0 to below 1"),
    ("model.dtype", "float16", "use 'float32' or 'bfloat16'"),
    ("model.dtype", jnp.float32, "use 'float32' or 'bfloat16'"),
    ("model.remat", 0, "use True or False"),
    ("init.backbone", None, "use printable text of 0 to 1000 characters"),
    ("init.checkpoint", "a\nb", "use printable text of 0 to 1000 characters"),
    ("losses.identity", -1, "use a number of 0 or more"),
    ("losses.triplet", INFINITY, "use a number of 0 or more"),
    ("losses.defense", True, "use a number of 0 or more"),
    ("optim.lr", -0.1, "use a number above 0"),
    ("optim.lr", 0, "use a number above 0"),
    ("optim.lr", 1e-60, "use a number above 0"),  # 0 as a float32
    ("optim.lr", NAN, "use a number above 0"),
    ("optim.lr", INFINITY, "use a number above 0"),
    ("optim.lr", 10**400, "use a number above 0"),
    ("optim.lr", 2**31, "use a number above 0"),  # too large for JAX
    ("optim.lr", "0.1", "use a number above 0"),
    ("optim.lr", {"a": 1}, "use a number above 0"),
    ("optim.backbone_lr", -0.1, "use a number of 0 or more"),
    ("optim.momentum", 1.5, "use a number from 0 to below 1"),
    ("optim.momentum", 1, "use a number from 0 to below 1"),
    ("optim.weight_decay", -1, "use a number of 0 or more"),
    ("optim.clip_norm", -5, "use a number of 0 or more"),
    ("optim.clip_norm", None, "use a number of 0 or more"),
    ("optim.warmup_epochs", -1, "use an integer of 0 or more"),
    ("optim.warmup_epochs", 2**31, "use an integer of 0 or more"),
    ("optim.decay_epochs", (10, 5), "use a tuple of ascending integers of 0 or more"),
    ("optim.decay_epochs", (5, 5), "use a tuple of ascending integers of 0 or more"),
    ("optim.decay_epochs", (-5, 5), "use a tuple of ascending integers of 0 or more"),
    ("optim.decay_epochs", 10, "use a tuple of ascending integers of 0 or more"),
    ("optim.ema_decay", 1, "use a number from 0 to below 1"),
    ("optim.epochs", 0, "use an integer from 1 to 1000000"),
    ("optim.epochs", 1.5, "use an integer from 1 to 1000000"),
    ("optim.optimizer", "lion", "use sgd, adam, adamw, or package.module:object"),
    ("optim.optimizer", "", A_PART),
    ("optim.schedule", "linear", "use steps, cosine, or package.module:object"),
    ("parallel.fsdp", 0, AN_INTEGER),
    (
        "eval.protocol",
        "mars",
        "use hitsz_vcm/v1, buptcampus/full, buptcampus/official-bs64, cross-modality, ",
    ),
    ("eval.batch_size", 0, "use an integer from 1 to 65536"),
    ("eval.clips", "all", "use 'first', 'chunk_first', 'linspace' or 'dense'"),
    ("eval.flip", 1, "use True or False"),
    ("eval.every_epochs", -1, "use an integer of 0 or more"),
    ("checkpoint.every_steps", 0, AN_INTEGER),
    ("checkpoint.keep", 0, AN_INTEGER),
    ("checkpoint.keep", None, AN_INTEGER),
    ("optim", 5, "use a section with the keys optimizer, lr, backbone_lr"),
    ("losses", None, "use a section with the keys identity, triplet"),
]


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    NONSENSE,
    ids=[f"{key}-{i}" for i, (key, _, _) in enumerate(NONSENSE)],
)
def test_nonsense_is_refused_by_key_value_and_what_to_use(key, value, allowed, workdir):
    message = refused(at(key, value), workdir)
    found = "a very long int" if value == 10**5000 else repr(plain(value))[:90]
    assert message.startswith(f"config.{key} is ") and found in message and allowed in message


def test_an_unknown_augmentation_is_refused(workdir):
    message = refused(changed(augment__parts=("normalize", "blur")), workdir)
    assert message.startswith("config.augment.parts is 'blur': use crop_and_flip, normalize, ")


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.lists(st.integers() | st.text()),
    st.lists(st.integers()).map(tuple),
    st.sets(st.integers()),
    st.dictionaries(st.sampled_from("abc"), st.integers()),
    st.just(np.arange(3)),
)


def is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


RIGHT_TYPE = {
    bool: lambda value: isinstance(value, bool),
    int: is_integer,
    float: lambda value: is_integer(value) or (isinstance(value, float) and np.isfinite(value)),
    str: lambda value: isinstance(value, str),
    tuple: lambda value: isinstance(value, list | tuple) and all(map(is_integer, value)),
    type(None): lambda value: value is None or is_integer(value),
    ml_collections.ConfigDict: lambda value: isinstance(value, dict),
}


@given(key=st.sampled_from(sorted(DEFAULTS)), data=st.data())
def test_a_value_of_the_wrong_type_is_refused_and_named(key, data, workdir):
    right = RIGHT_TYPE[type(DEFAULTS[key])]
    value = data.draw(anything.filter(lambda value: not right(value)))
    assert refused(at(key, value), workdir).startswith(f"config.{key} is ")


@given(key=st.sampled_from(sorted(KEYS.keys() - ADDED_KEYS.keys())))  # train adds the others
def test_a_missing_key_is_named(key, workdir):
    config = changed()
    section, _, name = key.rpartition(".")
    del (config[section] if section else config)[name]
    assert refused(config, workdir).startswith(f"config.{key} is missing: use ")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.learning_rate", "optim.lr"),
        ("optim.weight_decai", "optim.weight_decay"),
        ("data.batch_size", "eval.batch_size"),
        ("model.backbone_option", "model.backbone_options"),
        ("sead", "seed"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_suggested(key, nearest, workdir):
    message = refused(at(key, 0.1), workdir)
    assert message.startswith(f"config.{key} does not exist: did you mean config.{nearest}?")


@pytest.mark.parametrize("value", [{}, {"a": 1}, None, 5])
def test_an_unknown_section_is_refused(value, workdir):
    assert refused(at("wandb", value), workdir).startswith("config.wandb does not exist: ")


def test_mirror_images_need_keypoints_in_the_resized_frame(workdir):
    message = refused(changed(eval__flip=True, model__keypoints="pixels"), workdir)
    assert message.startswith("config.eval.flip is True: use False with config.model.keypoints")


def test_pixels_of_the_stored_frame_cannot_follow_crop_and_flip(workdir):
    """augment_test.py shows why; a network that was trained in this way stays usable."""
    config = changed(augment__move_keypoints=True, model__keypoints="pixels")
    message = refused(config, workdir)
    assert "config.augment.move_keypoints" in message and "config.model.keypoints" in message
    with pytest.raises(InputError, match=r"config\.augment\.move_keypoints"):
        steps.make_train_step(config, build_model(config.model), 1, parallel.make_mesh())
    as_config(config)


def test_training_starts_from_a_backbone_or_a_network(workdir):
    message = refused(changed(init__backbone="r.pth", init__checkpoint="runs/a"), workdir)
    assert message.startswith(
        "config.init.backbone is 'r.pth' and config.init.checkpoint is 'runs/a': use one of them"
    )


def test_a_placeholder_that_nobody_filled_is_refused(workdir):
    empty = ml_collections.config_dict.required_placeholder(float)
    assert "config.optim.lr is None: use" in refused(at("optim.lr", empty), workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guidance", "pooling", "style"),
    [*itertools.product(("none", "frame"), ("guided", "gem"), (False, True))],
)
def test_a_loss_that_the_network_computes_must_have_a_weight(guidance, pooling, style, workdir):
    config = changed(model__guidance=guidance, model__pooling=pooling, augment__style=style)
    config.data.clip_length = 1
    computed = computed_losses(config)
    assert {"identity", "triplet", "frame_identity"} <= computed
    for name in LOSSES:
        config.losses[name] = 0.0 if name in computed else 1.0
    message = refused(config, workdir)
    assert message.startswith("config.losses is 0 for ")
    assert set(re.findall(r"\w+", message.partition(":")[0])) & set(LOSSES) == computed
    for name in computed:
        config.losses[name] = 0.5
        as_config(config)
        config.losses[name] = 0.0


def computed_losses(config):
    """Returns the losses that a training step of the config computes, from its metrics."""
    model = build_model(config.model)
    config = config.copy_and_resolve_references()
    config.losses.update(dict.fromkeys(LOSSES, 1.0))
    mesh = parallel.make_mesh(config, jax.devices()[:1])
    state = abstract_state(config, model, 1, mesh)
    batch = tpu_compile.abstract_batch(config, mesh)
    _, metrics = jax.eval_shape(steps.make_train_step(config, model, 1, mesh), state, batch)
    names = {name.partition("loss/")[2] for name in metrics if name.startswith("loss/")}
    return names - {"total"}


def test_the_table_knows_what_the_code_does():
    named = lambda key: set(re.findall(r"'(.+?)'", KEYS[key].values.text))  # noqa: E731
    for parts in (
        *(sampling.SAMPLERS, protocols.PROTOCOLS, augment.AUGMENTATIONS),
        *(backbones.BACKBONES, guidance.GUIDANCE, pooling.POOLINGS),
        *(optim.OPTIMIZERS, optim.SCHEDULES),
    ):
        assert all(map(part().include, parts))
    assert named("eval.clips") == set(sampling.CLIPS)
    of = lambda section: {key.partition(".")[2] for key in KEYS if key.startswith(section)}  # noqa: E731
    assert of("losses.") == {*LOSSES, "extra"}
    fields = set(Star.__dataclass_fields__) - {"parent", "name"}
    assert of("model.") - fields == {"backbone_options", "gem_power", "remat"}  # of parts
    assert fields <= of("model.")
    assert set(DEFAULTS) == set(KEYS)
    assert set(SECTIONS) == {
        key
        for key, value in star_hitsz_vcm.get_config().items()
        if value and isinstance(value, ml_collections.ConfigDict)
    }


def test_the_documentation_is_that_of_the_table():
    assert (ROOT / "docs/config.md").read_text(encoding="utf-8") == markdown(), (
        "run: python -m star_jax.config > docs/config.md"
    )


def test_seeds_start_different_networks_and_batches():
    seeds = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
    config = changed(model__guidance="none", model__pooling="gem", data__clip_length=1)
    model = build_model(config.model)

    def kernel(seed):
        config.seed = seed
        as_config(config)
        init = lambda: initial_variables(config, model)["params"]["backbone"]  # noqa: E731
        return np.asarray(jax.jit(lambda: init()["stem_visible"]["conv"]["kernel"])())

    kernels = [kernel(seed) for seed in (0, 2**31, 2**32 - 1)]
    assert not any(np.allclose(*two) for two in itertools.combinations(kernels, 2))
    keys = {tuple(jax.random.key_data(jax.random.key(seed)).tolist()) for seed in seeds}
    draws = {sampling.row_generator(seed, 0, 0, 0).integers(2**62) for seed in seeds}
    assert len(keys) == len(draws) == len(seeds)


def test_jax_takes_seeds_modulo_2_to_the_32():
    """Larger seeds are rejected for this reason; if it no longer holds, they can be allowed."""
    with contextlib.suppress(OverflowError):
        both = [jax.random.key_data(jax.random.key(seed)).tolist() for seed in (1, 2**32 + 1)]
        assert both[0] == both[1]


def test_frames_of_16_pixels_lose_their_content_to_the_style_disturbance():
    """Frames must be larger for this reason: their stage 3 map is one value, which is all style."""

    def stage3_size(pixels):
        backbone = resnet.ResNet("basic", (1, 1, 1, 1), 1)
        frames = jnp.zeros((1, 1, pixels, pixels, 3))
        run = lambda: backbone.init_with_output(  # noqa: E731
            jax.random.key(0),
            frames,
            modality="visible",
            train=False,
            capture_intermediates=True,
            mutable=["params", "batch_stats", "intermediates"],
        )
        return jax.eval_shape(run)[1]["intermediates"]["stage3"]["__call__"][0].shape[1:3]

    assert stage3_size(16) == (1, 1) and stage3_size(17) == (2, 2)
    single = jax.random.normal(jax.random.key(0), (2, 1, 1, 4))
    np.testing.assert_allclose(resnet.adain(single, jnp.array([1, 1]))[0], single[1])


def test_a_huge_batch_is_refused_in_no_time():
    assert parallel.usable_devices(2**32, 1024, 8) == [1, 2, 4, 8]


def test_a_network_and_a_compilation_check_the_config_too():
    config = changed()
    del config.model.dropout_rate
    with pytest.raises(InputError, match=r"config\.model\.dropout_rate is missing: use a number"):
        build_model(config.model)
    with pytest.raises(InputError, match=r"config\.model\.dropout_rate is missing: use a number"):
        tpu_compile.compile_step(config, "v5e:2x4")


FILES = {
    "syntax": "def get_config(:\n",
    "nothing": "x = 1\n",
    "raises": "def get_config():\n    return 1 / 0\n",
    "ends": "import sys\nsys.exit(0)\n",
    "dict": "def get_config():\n    return {'seed': 1}\n",
    "lacks": "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()\n",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "flags", "message"),
    [
        ("syntax", [], r'File ".*syntax.py", line 1\n.*SyntaxError.*syntax.py: the file cannot be'),
        ("raises", [], r"ZeroDivisionError: .*raises.py: the file cannot be run"),
        ("ends", [], r"ends.py: the file ends the command: SystemExit\(0\)"),
        ("nothing", [], r"^error: --config=\S*nothing.py: the file defines no get_config"),
        (
            "dict",
            [],
            r"^error: --config=\S*dict.py: get_config\(\) must return a ConfigDict, found d",
        ),
        ("missing", [], r"^error: --config=\S*missing.py: no such file$"),
        (
            "lacks",
            ["--config.seed=1"],
            r"^error: --config=\S*lacks.py: config.log_every_steps is missing: use",
        ),
        ("tiny", ["--config.seed=x"], r"^error: --config.seed=x: use an integer from 0 to"),
        (
            "tiny",
            ["--config.optim.learning_rate=1"],
            r"^error: --config.*did you mean config.optim.lr",
        ),
        ("tiny", ["--config.data.frame_size[0]=1"], r"^error: --config.* does not exist"),
        (
            "tiny",
            ["--config.optim.lr=-1"],
            r"^error: --config.optim.lr=-1: use a number above 0$",
        ),
    ],
)
def test_the_command_names_what_is_wrong(tmp_path, file, flags, message):
    path = tmp_path / f"{file}.py"
    if file in FILES:
        path.write_text(FILES[file])
    elif file == "tiny":
        tiny.config_file(tmp_path, Path("nowhere"), name=path.name)
    command = [sys.executable, "launch/train.py", f"--config={path}", f"--workdir={tmp_path}/run"]
    result = subprocess.run(
        [*command, *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode and not (tmp_path / "run").exists()
    assert re.search(message, result.stderr.strip(), re.DOTALL), result.stderr
    # The traceback shows only the lines of the user's file.
    assert "command.py" not in result.stderr
    if message.startswith("^"):
        assert result.stderr.count("\n") == 1
