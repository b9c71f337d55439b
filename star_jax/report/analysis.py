"""What the report shows of a trained network: rankings, distances, weights and attention."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int, Shaped, UInt8
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from data_pipelines.coco17 import JOINTS, is_detected
from data_pipelines.io.progress import Progress
from data_pipelines.records.dataset import Split
from data_pipelines.schema import INFRARED, VISIBLE, Index
from star_jax import augment
from star_jax.distributed.parallel import put, split_rows
from star_jax.embedding.embed import split_batches, whole_batch
from star_jax.evaluation.intervals import difference_interval, score_interval
from star_jax.evaluation.protocols import rank
from star_jax.evaluation.ranking import Match, Ranking, Result, is_known
from star_jax.models.guidance import FrameGuidance
from star_jax.models.keypoint_graph import tracklet_edges
from star_jax.models.pooling import POWERS, GuidedPooling
from star_jax.network import Network

PAIRINGS = ((VISIBLE, VISIBLE), (INFRARED, INFRARED), (VISIBLE, INFRARED))
BINS = 40


class Curve(NamedTuple):
    """K means with the ends of their 95 % intervals, float64[K] each."""

    mean: Float64[np.ndarray, " K"]
    low: Float64[np.ndarray, " K"]
    high: Float64[np.ndarray, " K"]


class Densities(NamedTuple):
    """How far apart or how similar tracklets are: densities of a number of pairs, in bins.

    Attributes:
      edges: float64[bins + 1], of the bins.
      same: float64[bins], density of the pairs of one identity; zeros without any.
      different: float64[bins], density of the pairs of two identities; zeros without any.
      num_same: pairs of one identity.
      num_different: pairs of two identities.
    """

    edges: Float64[np.ndarray, " edges"]
    same: Float64[np.ndarray, " bins"]
    different: Float64[np.ndarray, " bins"]
    num_same: int
    num_different: int


@dataclasses.dataclass(frozen=True)
class Details:
    """What happens within the network for n tracklets, one clip of T frames of each.

    Attributes:
      embeddings: float32[n, C].
      powers: float32[n, 5], weights of the POWERS of guided pooling, averaged over channels; None
        with another pooling.
      favorites: float32[n, 5], share of the channels whose largest weight is that of a power.
      to_features: float32[n, T, T], attention of the skeleton of a frame (first axis) to frames,
        averaged over heads; None with another guidance.
      to_edges: float32[n, T, T], attention of a frame to the skeletons of frames, likewise.
      joints: float32[n, T, 17], attention of other joints to a joint in the keypoint graph's last
        layer, summed over them; None without skeletons.
      hidden: float32[n, 17, C], embeddings with one joint undetected in all frames; None without
        skeletons.
    """

    embeddings: Float32[np.ndarray, "n C"]
    powers: Float32[np.ndarray, "n P"] | None = None
    favorites: Float32[np.ndarray, "n P"] | None = None
    to_features: Float32[np.ndarray, "n T T"] | None = None
    to_edges: Float32[np.ndarray, "n T T"] | None = None
    joints: Float32[np.ndarray, "n T J"] | None = None
    hidden: Float32[np.ndarray, "n J C"] | None = None


def cmc_curve(ranking: Ranking, identities: Shaped[np.ndarray, " N"], max_rank: int = 50) -> Curve:
    """Returns the CMC in percent up to a rank; intervals are over identities of the queries.

    Args:
      ranking: of one direction.
      identities: str[N], of all tracklets of the index.
      max_rank: K; the size of the gallery if that is smaller.
    """
    result = ranking.result
    ranks = np.arange(1, min(max_rank, result.num_gallery) + 1)
    hits = 100.0 * (result.first_match[result.matched][:, None] <= ranks)
    queries = ranking.queries[result.matched]
    low, high = score_interval(hits[None], identities[queries])
    return Curve(hits.mean(axis=0), low, high)


def chosen_queries(
    ranking: Ranking, identities: Shaped[np.ndarray, " Q"], count: int
) -> dict[str, list[int]]:
    """Returns the queries of the highest, middle and lowest average precision.

    Args:
      ranking: of one direction.
      identities: str[Q], of its queries.
      count: queries of each kind, fewer if there are not enough identities.

    Returns:
      Rows of the ranking by "best", "worst" and "median", each of another identity.
    """
    precision = ranking.result.average_precision
    order = np.argsort(-precision, kind="stable")[: ranking.result.num_queries]  # NaN comes last
    from_middle = np.argsort(np.abs(np.arange(len(order)) - (len(order) - 1) / 2), kind="stable")
    found: dict[str, list[int]] = {"best": [], "median": [], "worst": []}
    seen = set()
    for name, rows in (("best", order), ("worst", order[::-1]), ("median", order[from_middle])):
        for row in rows.tolist():
            if len(found[name]) < count and identities[row] not in seen:
                found[name].append(row)
                seen.add(identities[row])
    return found


def first_matches(
    ranking: Ranking, row: int, identities: Shaped[np.ndarray, " N"], count: int
) -> Result:
    """Returns the most similar gallery entries of a query, best first, see `Ranking.top`.

    Args:
      ranking: of one direction.
      row: of the query.
      identities: str[N], of all tracklets of the index.
      count: how many entries.

    Returns:
      The result, with positions in the index.
    """
    query = int(ranking.queries[row])
    matches = []
    for entry in ranking.top(row, count):
        position = int(ranking.gallery[entry])
        same = bool(identities[position] == identities[query])
        matches.append(Match(position, float(ranking.similarity[row, entry]), same))
    return Result(query, matches, int(ranking.result.first_match[row]))


def distance_densities(
    embeddings: Float32[np.ndarray, "n C"],
    identities: Shaped[np.ndarray, " n"],
    modalities: Int[np.ndarray, " n"],
) -> dict[tuple[int, int], Densities]:
    """Returns the cosine distances of all pairs of tracklets, by PAIRINGS of modalities.

    A pair is counted once, and no tracklet is paired with itself. Pairs with a person of unknown
    identity are left out.
    """
    edges = np.linspace(0, 2, 2 * BINS + 1)
    found = {}
    for first, second in PAIRINGS:
        rows, columns = (np.flatnonzero(modalities == number) for number in (first, second))
        distance = 1 - embeddings[rows] @ embeddings[columns].T
        counted = rows[:, None] < columns if first == second else np.ones(distance.shape, bool)
        ids = identities[rows], identities[columns]
        found[first, second] = densities(distance, *ids, counted, edges)
    return found


def densities(
    values: np.ndarray,
    row_ids: np.ndarray,
    column_ids: np.ndarray,
    counted: np.ndarray,
    edges: np.ndarray,
) -> Densities:
    """Returns the densities of the values of those pairs of known people that are counted."""
    counted = counted & is_known(row_ids)[:, None] & is_known(column_ids)
    same = row_ids[:, None] == column_ids
    alike, unlike = values[counted & same], values[counted & ~same]
    return Densities(
        edges, _density(alike, edges), _density(unlike, edges), len(alike), len(unlike)
    )


def _density(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    if not len(values):
        return np.zeros(len(edges) - 1)
    density, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges, density=True)
    return np.asarray(density)


def embedding_map(embeddings: Float32[np.ndarray, "n C"]) -> Float[np.ndarray, "n 2"]:
    """Returns a map of embeddings by t-SNE, which starts at their principal components.

    Neighborhoods are meaningful, distances and directions are not. The same embeddings give the
    same map.

    Args:
      embeddings: float32[n, C], n of 2 or more.
    """
    if len(embeddings) < 8:  # too few for neighborhoods
        return np.asarray(PCA(2, random_state=0).fit_transform(embeddings))
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=0, n_jobs=1)
    return np.asarray(tsne.fit_transform(embeddings))


def whole_identities(identities: Shaped[np.ndarray, " N"], limit: int) -> Int[np.ndarray, " n"]:
    """Returns the positions of the tracklets of some known identities, ascending.

    Identities are drawn with a fixed seed as long as their tracklets stay within a limit; the first
    one is always taken.
    """
    names = np.unique(identities[is_known(identities)])
    np.random.default_rng(0).shuffle(names)
    chosen: list[np.ndarray] = []
    total = 0
    for name in names:
        own = np.flatnonzero(identities == name)
        if chosen and total + len(own) > limit:
            continue
        chosen.append(own)
        total += len(own)
    return np.sort(np.concatenate(chosen))


@functools.cache
def make_details_step(
    model: Any, modality: str, mesh: jax.sharding.Mesh
) -> Callable[..., dict[str, Array]]:
    """Returns a jitted step that embeds clips and reads what happens within the network.

    Returns:
      A function of variables, frames uint8[B, T, H, W, 3] and keypoints float32[B, T, 17, 3] that
      returns the fields of `Details` that the network has, split over the devices by rows.
    """

    def details(
        variables: Any, frames: UInt8[Array, "B T H W 3"], keypoints: Float32[Array, "B T 17 3"]
    ) -> dict[str, Array]:
        normalized = augment.normalize(frames)

        def embed(keypoints: Array, **options: Any) -> Any:
            return model.apply(
                variables, normalized, keypoints, modality=modality, train=False, **options
            )

        output, sown = embed(keypoints, mutable=["intermediates"])
        found = {"embeddings": output.embedding}
        found |= _intermediates(model, sown.get("intermediates", {}), is_detected(keypoints))
        if model.uses_skeletons:

            def hide(joint: Array) -> Any:
                return embed(keypoints.at[:, :, joint].set(0.0)).embedding

            # Frames are the same for all joints, so the backbone runs once.
            found["hidden"] = jax.vmap(hide, out_axes=1)(jnp.arange(len(JOINTS)))
        return found

    rows = split_rows(mesh)
    return jax.jit(details, in_shardings=(None, rows, rows), out_shardings=rows)


def _intermediates(model: Any, sown: Mapping[str, Any], detected: Array) -> dict[str, Array]:
    """Returns the fields of `Details` that modules of this package have sown."""
    found = {}
    if isinstance(model.pooling, GuidedPooling):
        (weights,) = sown["pooling"]["weights"]
        found["powers"] = weights.mean(-1)
        found["favorites"] = jax.nn.one_hot(weights.argmax(-2), len(POWERS)).mean(-2)
    if isinstance(model.guidance, FrameGuidance):
        for field in ("to_features", "to_edges"):
            name = {"to_features": "edges_to_features", "to_edges": "features_to_edges"}[field]
            (weights,) = sown["guidance"][name]["attention_weights"]
            found[field] = weights.mean(1)
    if "keypoint_graph" in sown:
        (weights,) = sown["keypoint_graph"]["gat2"]["weights"]
        found["joints"] = _attention_to_joints(
            weights.mean(-1),
            detected,
            skeleton_in_every_frame=model.graph_edges == "every_frame",
        )
    return found


def _attention_to_joints(
    weights: Float32[Array, "E R"], detected: Array, *, skeleton_in_every_frame: bool
) -> Float32[Array, "R T J"]:
    """Returns the sum of the weights of the edges from a joint to others, 0 if undetected."""
    rows, time, joints = detected.shape
    senders, receivers = tracklet_edges(time, skeleton_in_every_frame=skeleton_in_every_frame)
    others = jnp.where((senders != receivers)[:, None], weights, 0.0)
    sums = jnp.zeros((time * joints, rows)).at[senders].add(others)
    return jnp.where(detected, sums.T.reshape(rows, time, joints), 0.0)


def read_details(network: Network, split: Split, positions: Int[np.ndarray, " n"]) -> Details:
    """Returns what happens within a network for tracklets of a split.

    Args:
      network: a trained network.
      split: of a dataset.
      positions: int[n], of the tracklets in its index, ascending.
    """
    mesh = network.mesh
    batch_size = whole_batch(min(network.config.eval.batch_size, len(positions)), mesh)
    batches = split_batches(network, split, positions, batch_size=batch_size, clips="first")
    parts: list[dict[str, np.ndarray]] = []
    order: list[np.ndarray] = []
    compiled = set()
    with Progress(len(positions), "analyzing the network", unit="tracklet") as progress:
        for modality, batch in batches:
            step = make_details_step(network.model, modality, mesh)
            inputs = put((batch["frames"], batch["keypoints"]), split_rows(mesh), batch_size)
            found = step(network.variables, *inputs)
            real = batch["position"] >= 0
            parts.append({name: np.asarray(value)[real] for name, value in found.items()})
            order.append(batch["position"][real])
            progress.update(sum(map(len, order)), timed=modality in compiled)
            compiled.add(modality)
    back = np.argsort(np.concatenate(order))
    arrays: dict[str, Any] = {
        name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]
    }
    return Details(**arrays)


def joint_sensitivity(
    protocol: str,
    embeddings: Float32[np.ndarray, "n C"],
    hidden: Float32[np.ndarray, "n J C"],
    index: Index,
) -> Curve:
    """Returns the drop of the mean average precision when a joint is hidden in all frames.

    Args:
      protocol: of the evaluation.
      embeddings: float32[n, C], of all joints.
      hidden: float32[n, 17, C], with a joint undetected.
      index: of these n tracklets.

    Returns:
      float64[17], percentage points, averaged over both directions, with 95 % intervals
      over the identities of the queries; negative where hiding helps.

    Raises:
      InputError: as `protocols.rank` does.
    """
    before = rank(protocol, embeddings, index)
    identities = [
        index.identities[ranking.queries[ranking.result.matched]] for ranking in before.values()
    ]
    drops = np.zeros((sum(map(len, identities)), hidden.shape[1]))
    for joint in range(hidden.shape[1]):
        after = rank(protocol, hidden[:, joint], index)
        # Scaled, so that the mean over all queries is the average of the directions' means.
        drops[:, joint] = np.concatenate(
            [
                100 * _precision_lost(before[name], after[name]) * len(drops) / 2 / len(own)
                for name, own in zip(before, identities, strict=True)
            ]
        )
    low, high = difference_interval([drops[None]], np.concatenate(identities))
    return Curve(drops.mean(axis=0), low, high)


def _precision_lost(before: Ranking, after: Ranking) -> np.ndarray:
    matched = before.result.matched
    lost = before.result.average_precision - after.result.average_precision
    lost_by_query: np.ndarray = lost[matched]
    return lost_by_query
