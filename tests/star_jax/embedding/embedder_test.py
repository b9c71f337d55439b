"""Embedding arrays and folders: the same embeddings as those of packed tracklets."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simplejpeg
import tiny
import video_files

from data_pipelines.datasets import folder
from data_pipelines.errors import DivergedError, InputError
from data_pipelines.records.dataset import open_dataset
from data_pipelines.schema import MODALITIES
from data_pipelines.skeletons.corruption import parse
from data_pipelines.synthetic import videos
from data_pipelines.synthetic.plan import SIZES
from star_jax import Embedder, Network, build_model
from star_jax.distributed.parallel import make_mesh
from star_jax.embedding import embedder, embeddings
from star_jax.embedding.embed import embed, embed_split
from star_jax.embedding.step import make_embed_step
from star_jax.report.pictures import open_spread_frames
from star_jax.search.search import search
from star_jax.state import abstract_variables

SIZE = (50, 30)  # of arrays of frames; the network's is (64, 48)


@functools.cache
def network(guided, num_devices=8):
    """Returns a network of random weights."""
    config = tiny.config("nowhere") if guided else tiny.baseline("nowhere")
    model = build_model(config.model)
    mesh = make_mesh(devices=jax.devices()[:num_devices])
    variables = tiny.random_weights(abstract_variables(config, model, mesh))
    return Network(7, config, model, variables, mesh)


def tracklets(num_tracklets, num_frames=3):
    """Returns noise and joints within it, of which some are not detected."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (num_tracklets, num_frames, *SIZE, 3), np.uint8)
    joints = rng.uniform(0, 1, (num_tracklets, num_frames, 17, 3)) * [SIZE[1], SIZE[0], 1]
    joints[rng.uniform(size=joints.shape[:-1]) < 0.2] = 0
    return frames, joints.astype(np.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Returns a packed dataset of frames of another size than the network's."""
    return tiny.packed_dataset(tmp_path_factory.mktemp("dataset"), train=(1,), test=(503, 504))


@pytest.mark.slow
@pytest.mark.parametrize("clips", ["first", "dense"])
def test_whole_tracklets_give_the_rows_of_the_packed_dataset(dataset, clips):
    own = network(guided=True)
    own = own.with_config(**{"eval.clips": clips})
    split = open_dataset(dataset).split("test")
    rows = embed(own, split).vectors
    index, records = split.index, split.records
    assert len(set(index.num_frames.tolist())) > 1
    for position in range(len(rows)):
        record = records[position]
        frames = np.stack([simplejpeg.decode_jpeg(jpeg) for jpeg in record["frames"]])
        assert frames.shape[1:3] != tuple(own.config.data.frame_size)
        keypoints, modality = record["keypoints"], MODALITIES[index.modalities[position]]
        found = Embedder(own)(frames[None], keypoints[None], modality=modality, batch_size=8)
        np.testing.assert_allclose(found[0], rows[position], rtol=0, atol=1e-5)
    wrong = keypoints[None] * np.float32([0.5, 0.5, 1])
    other = Embedder(own)(frames[None], wrong, modality=modality, batch_size=8)
    assert np.abs(other[0] - rows[-1]).max() > 1e-4  # so that wrong keypoints would show


@pytest.mark.slow
def test_flip_averages_clips_and_their_mirror_images():
    own = network(guided=True)
    config = own.config.copy_and_resolve_references()
    config.eval.flip = True
    frames, keypoints = tracklets(3)
    mirrored = keypoints.copy()
    mirrored[..., 0] = SIZE[1] - 1 - keypoints[..., 0]
    left, right = [1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 10, 12, 14, 16]
    mirrored[:, :, left + right] = mirrored[:, :, right + left]
    mirrored[mirrored[..., 2] == 0] = 0
    arrays = [(frames, keypoints), (frames[:, :, :, ::-1], mirrored)]
    plain = [Embedder(own)(*pair, modality="infrared", batch_size=8) for pair in arrays]
    assert np.abs(plain[0] - plain[1]).max() > 1e-3
    expected = plain[0] + plain[1]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for pair in arrays:
        mirroring = Embedder(own._replace(config=config))
        found = mirroring(*pair, modality="infrared", batch_size=8)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_without_any_joint_the_embeddings_are_those_of_undetected_skeletons(dataset):
    own = network(guided=True)
    split = open_dataset(dataset).split("test")
    rows = embed_split(own, split, corruption=parse("drop:1"))
    index, records = split.index, split.records
    for position in (0, len(rows) - 1):
        record = records[position]
        frames = np.stack([simplejpeg.decode_jpeg(jpeg) for jpeg in record["frames"]])[None]
        modality = MODALITIES[index.modalities[position]]
        for keypoints, same in ((record["keypoints"], False), (0 * record["keypoints"], True)):
            found = Embedder(own)(frames, keypoints[None], modality=modality, batch_size=8)
            assert np.allclose(found[0], rows[position], rtol=0, atol=1e-5) == same


def test_joints_in_pixels_reach_the_network_as_they_are(monkeypatch):
    own = network(guided=True)
    config = own.config.copy_and_resolve_references()
    config.model.keypoints = "pixels"
    config.eval.clips = "dense"
    seen = []

    def look(*args, **_):
        seen.extend(batch for _, batch in args[1])
        return np.zeros((1, 4), np.float32)

    monkeypatch.setattr(embedder, "embed_clips", look)
    frames, keypoints = tracklets(1, num_frames=4)
    for each in (own._replace(config=config), own):
        Embedder(each)(frames, keypoints, modality="visible")
    pixels, relative = (np.concatenate(list(batch["keypoints"])) for batch in seen)
    np.testing.assert_array_equal(pixels[:4], keypoints[0])
    assert not pixels[4:].any()
    # 50 x 30 becomes 64 x 48: the center of the left pixel, 0.5 from the edge, is at 0.8 of it.
    detected = keypoints[0, 0, :, 2] > 0
    expected = (keypoints[0, 0, detected, :2] + 0.5) * [48 / 30, 64 / 50] - 0.5
    np.testing.assert_allclose(relative[0, detected, :2], expected, rtol=1e-5)


def test_any_number_of_tracklets_in_batches_of_any_size():
    embed = Embedder(network(guided=False))
    frames, _ = tracklets(9)
    expected = embed(frames, modality="visible", batch_size=8)
    assert expected.shape == (9, 32) and expected.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-5)
    assert np.abs(expected - expected[:1]).max(axis=1)[1:].min() > 1e-4
    step = make_embed_step(embed.network.model, "visible", embed.network.mesh)
    compiled = step._cache_size()
    for count, batch_size in ((1, 64), (5, 8), (8, 3), (9, 1)):
        found = embed(frames[:count], modality="visible", batch_size=batch_size)
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-6)
    assert step._cache_size() == compiled


@pytest.mark.parametrize(
    ("count", "batch_size", "rows"),
    [(1, 64, 8), (8, 64, 8), (9, 64, 16), (33, 64, 64), (99, 64, 64), (99, 20, 24)],
)
def test_batches_are_multiples_of_the_devices(monkeypatch, count, batch_size, rows):
    seen = []

    def look(*args, batch_size, **_):
        seen.extend((batch_size, len(batch["position"])) for _, batch in args[1])
        return np.zeros((count, 4), np.float32)

    monkeypatch.setattr(embedder, "embed_clips", look)
    frames = np.zeros((count, 1, 8, 8, 3), np.uint8)
    Embedder(network(guided=False))(frames, modality="visible", batch_size=batch_size)
    assert seen == [(rows, rows)] * -(-count // rows)


def test_arrays_of_jax_and_views_are_embedded():
    embed = Embedder(network(guided=False))
    frames, keypoints = tracklets(2)
    expected = embed(frames, modality="visible")
    found = embed(jnp.asarray(frames), jnp.asarray(keypoints), modality="visible")
    np.testing.assert_array_equal(found, expected)
    view = np.ascontiguousarray(frames[..., ::-1])[..., ::-1]
    np.testing.assert_array_equal(embed(view, modality="visible"), expected)
    at_size = np.zeros((1, 2, 64, 48, 3), np.uint8)
    assert embed(at_size, modality="visible").shape == (1, 32)


def test_eight_devices_embed_as_one():
    frames, _ = tracklets(3)
    eight, one = (
        Embedder(network(guided=False, num_devices=count))(frames, modality="visible")
        for count in (8, 1)
    )
    assert network(guided=False).mesh.size == 8
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)


FRAMES, KEYPOINTS = tracklets(2)
WRONG = {
    "modality": ({"modality": "thermal"}, "modality is 'thermal': use 'visible' or 'infrared'"),
    "no skeletons": ({"keypoints": None}, r"keypoints=\.\.\., float32\[2, 3, "),
    "one frame": ({"frames": FRAMES[0]}, r"frames have the shape \[3, 50, 30, 3\]: pass uint8\[B"),
    "channels": ({"frames": FRAMES[..., :1]}, r"frames have the shape \[2, 3, 50, 30, 1\]: pass"),
    "normalized": ({"frames": FRAMES / np.float32(255)}, "frames are float32: pass uint8"),
    "no frames": ({"frames": FRAMES[:, :0]}, r"\[2, 0, 50, 30, 3\], which is empty"),
    "no tracklets": ({"frames": FRAMES[:0]}, r"\[0, 3, 50, 30, 3\], which is empty"),
    "other tracklets": (
        {"keypoints": KEYPOINTS[:1]},
        r"keypoints have the shape \[1, 3, 17, 3\]: pass \[2, 3, 17, 3\] for frames",
    ),
    "other joints": (
        {"keypoints": KEYPOINTS[:, :, :13]},
        r"shape \[2, 3, 13, 3\]: pass \[2, 3, 17",
    ),
    "whole numbers": ({"keypoints": KEYPOINTS.astype(np.int32)}, "keypoints are int32: pass float"),
    "not a number": (
        {"keypoints": np.where(np.arange(17)[:, None] == 4, np.nan, KEYPOINTS)},
        r"keypoints\[0, 0, 4\] is \[nan, nan, nan\], not finite: .* has confidence 0",
    ),
    "too large": (
        {"keypoints": KEYPOINTS.astype(np.float64) + 1e300},
        r"keypoints\[0, 0, 0\] is \[inf, .*not finite",
    ),
    "confidence": ({"keypoints": -KEYPOINTS - 1}, r"keypoints\[0, 0, 0\] is .*negative confidence"),
    **{
        f"far {place}": (
            {"keypoints": np.where(np.arange(17)[:, None] == 4, joint, KEYPOINTS)},
            r"keypoints\[0, 0, 4\] is .*100 times",
        )
        for place, joint in {
            "x": [3.1e3, 0, 1],
            "-x": [-1e25, 0, 1],
            "y": [0, 5.1e3, 1],
            "-y": [0, -1e38, 0.01],
        }.items()
    },
    "a huge confidence": (
        {"keypoints": np.where(np.arange(17)[:, None] == 4, [1, 1, 1e25], KEYPOINTS)},
        r"keypoints\[0, 0, 4\] is .*confidence above 1000",
    ),
    "ragged frames": (
        {"frames": [FRAMES[0].tolist(), FRAMES[0, :2].tolist()]},
        "^frames is not an arr",
    ),
    "ragged keypoints": (
        {"keypoints": [KEYPOINTS[0].tolist(), KEYPOINTS[0, :2].tolist()]},
        "^keypoints is not an array",
    ),
    "frames of objects": ({"frames": FRAMES.astype(object)}, "frames are object: pass uint8"),
    "frames of text": ({"frames": FRAMES.astype(str)}, "frames are <U3: pass uint8"),
    "keypoints of objects": ({"keypoints": KEYPOINTS.astype(object)}, "keypoints are object"),
    "keypoints of text": ({"keypoints": KEYPOINTS.astype(str)}, "keypoints are <U32"),
    "complex keypoints": ({"keypoints": KEYPOINTS + 1j}, "keypoints are complex"),
    "masked frames": ({"frames": np.ma.masked_array(FRAMES)}, "^frames is a masked array"),
    "list of masked keypoints": (
        {"keypoints": list(np.ma.masked_array(KEYPOINTS))},
        "^keypoints is a masked",
    ),
    "masked keypoints": ({"keypoints": np.ma.masked_array(KEYPOINTS)}, "^keypoints is a masked"),
    "nothing": ({"frames": None}, r"frames have the shape \[\]"),
    "batch size": ({"batch_size": 0}, "batch_size is 0: use 1 or more"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_bad_input_is_named(changes, message):
    arguments = {"frames": FRAMES, "keypoints": KEYPOINTS, "modality": "visible"} | changes
    frames, keypoints = arguments.pop("frames"), arguments.pop("keypoints")
    with pytest.raises(ValueError, match=message) as error:
        Embedder(network(guided=True))(frames, keypoints, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_joints_that_are_far_from_the_frame_give_embeddings():
    """The farthest that are accepted, and undetected ones anywhere."""
    embed = Embedder(network(guided=True))
    frames, keypoints = tracklets(1)
    expected = embed(frames, keypoints, modality="visible")
    anywhere = np.where(keypoints[..., 2:] == 0, np.float32([1e25, -1e25, 0]), keypoints)
    np.testing.assert_array_equal(embed(frames, anywhere, modality="visible"), expected)
    for joint in ([3000, 5000, 1000], [-3000, -5000, 1e-30]):
        found = embed(frames, np.full_like(keypoints, joint), modality="visible")
        assert np.isfinite(found).all() and np.abs(np.linalg.norm(found) - 1) < 1e-5
    config = embed.network.config.copy_and_resolve_references()
    config.model.keypoints = "pixels"  # which uses undetected joints, too
    with pytest.raises(InputError, match="100 times"):
        Embedder(embed.network._replace(config=config))(frames, anywhere, modality="visible")


def test_a_network_that_overflows_is_named():
    own = network(guided=False)
    params = {**own.variables["params"]}
    params["bnneck"] = {"scale": params["bnneck"]["scale"] * np.float32(1e38) * np.float32(9)}
    variables = {**own.variables, "params": params}
    with pytest.raises(DivergedError, match="2 of 2 embeddings"):
        Embedder(own._replace(variables=variables))(FRAMES, modality="visible")


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Returns a folder of videos and pictures of two people and a stranger."""
    root = tmp_path_factory.mktemp("footage") / "source"
    test = dataclasses.replace(SIZES["tiny"].test, identities=2)
    videos.write(root, dataclasses.replace(SIZES["tiny"], test=test), seed=0)
    rng = np.random.default_rng(0)
    for number in range(5):
        for name in (f"jpeg/{number}.jpg", f"png/{number}.png"):
            pixels = rng.integers(0, 256, (40 + number, 20, 3), np.uint8)
            video_files.write_image(root / "unknown/visible/3" / name, pixels)
    return root


@pytest.fixture(scope="module")
def embedded(footage):
    return Embedder(network(guided=True)).folder(footage, every=2, batch_size=8)


def test_a_folder_is_embedded_as_if_it_were_packed(footage, embedded, tmp_path):
    dataset = open_dataset(folder.prepare(footage, tmp_path, every=2))
    packed = embed(network(guided=True), dataset.split("test"))
    np.testing.assert_allclose(embedded.vectors, packed.vectors, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(embedded.first_frames, packed.first_frames)
    for name, column in vars(packed.index).items():
        np.testing.assert_array_equal(getattr(embedded.index, name), column)
    assert embedded.provenance.differences(packed.provenance) == []
    assert set(embedded.index.modalities) == {0, 1} and "unknown" in embedded.index.identities
    assert embedded.dataset_dir == str(footage)


def test_a_folder_is_saved_and_searched(embedded, tmp_path):
    npz, _ = embeddings.save(tmp_path / "people", embedded)
    loaded = embeddings.load(npz)
    found = search(loaded, loaded, query_modality="any", gallery_modality="any", top=1)
    assert all(result.matches[0].position != result.query for result in found.results)
    warnings = []
    assert open_spread_frames(loaded, warnings.append) is None
    (line,) = warnings
    assert "no pictures" in line and "launch/prepare.py" in line


def test_the_fingerprint_is_that_of_the_content(footage, embedded, tmp_path):
    own = Embedder(network(guided=True))
    other = own.folder(footage, every=3, batch_size=8)
    assert other.provenance.dataset != embedded.provenance.dataset
    again = own.folder(footage, every=2, batch_size=8)
    assert again.provenance == embedded.provenance


def test_a_folder_without_skeletons(footage, tmp_path):
    for number in range(3):
        video_files.write_image(tmp_path / f"alice/infrared/1/walk/{number}.png")
    found = Embedder(network(guided=False)).folder(tmp_path)
    assert found.vectors.shape == (1, 32) and found.index.modalities.tolist() == [1]
    guided = Embedder(network(guided=True))
    with pytest.raises(FileNotFoundError, match="no skeletons"):
        guided.folder(tmp_path)
    with pytest.raises(ValueError, match=r"skeletons\.h5: no frame has a skeleton"):
        guided.folder(tmp_path, keypoints=footage / "skeletons.h5")
    (tmp_path / "alice/infrared/1/walk/1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"walk/1\.png: "):
        Embedder(network(guided=False)).folder(tmp_path)
    with pytest.raises(ValueError, match="batch_size is 0"):
        guided.folder(tmp_path, batch_size=0)
