"""Evaluation protocols: which tracklets are queries and gallery, and what is reported."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped

from data_pipelines.errors import InputError
from data_pipelines.parts import find_part
from data_pipelines.schema import INFRARED, VISIBLE
from star_jax.evaluation import scores
from star_jax.evaluation.ranking import Ranking, is_known, own_entries
from star_jax.evaluation.retrieval import number_labels, require_a_match
from star_jax.evaluation.similarity import Similarity, make_similarity


class Rules(NamedTuple):
    """The rules of a protocol.

    Attributes:
      camera_rule: whether gallery entries of the query's identity and camera are removed.
      visible_batch: batch size; visible queries and gallery entries beyond the last full batch are
        dropped.
      cameras_of_one_modality: whether a camera must show an identity in one modality only, so that
        the camera rule removes nothing; otherwise the evaluation is refused.
      both_modalities: whether queries search the tracklets of both modalities, except themselves.
    """

    camera_rule: bool = False
    visible_batch: int = 1
    cameras_of_one_modality: bool = False
    both_modalities: bool = False


PROTOCOLS: Mapping[str, Rules] = {
    "hitsz_vcm/v1": Rules(camera_rule=True, cameras_of_one_modality=True),
    "buptcampus/full": Rules(),
    "buptcampus/official-bs64": Rules(visible_batch=64),
    "cross-modality": Rules(),
    "cross-modality/other-cameras": Rules(camera_rule=True),
    "any": Rules(both_modalities=True),
    "any/other-cameras": Rules(both_modalities=True, camera_rule=True),
}

_MODALITIES = {"i2v": (INFRARED, VISIBLE), "v2i": (VISIBLE, INFRARED)}  # query, gallery


def find_protocol(name: str) -> Rules:
    """Returns the rules at a name or path; raises an InputError if there are none."""
    where = "config.eval.protocol"
    return find_part(
        PROTOCOLS, name, where, kind="a Rules", include=lambda part: isinstance(part, Rules)
    )


class TrackletIndex(Protocol):
    """What an evaluation needs to know about the N embedded tracklets."""

    @property
    def modalities(self) -> Int[np.ndarray, " N"]:
        """int[N], VISIBLE or INFRARED."""

    @property
    def identities(self) -> Shaped[np.ndarray, " N"]:
        """str[N]."""

    @property
    def cameras(self) -> Int[np.ndarray, " N"]:
        """int[N]."""

    @property
    def camera_names(self) -> Shaped[np.ndarray, " N"]:
        """str[N]."""

    @property
    def conditions(self) -> Shaped[np.ndarray, " N"]:
        """str[N], under which a tracklet was filmed, joined by ";"; empty if unknown."""

    @property
    def rows(self) -> Int[np.ndarray, " N"]:
        """int[N], the order of the queries."""

    @property
    def queries(self) -> Bool[np.ndarray, " N"]:
        """bool[N], whether a tracklet is a query."""

    @property
    def galleries(self) -> Bool[np.ndarray, " N"]:
        """bool[N], whether a tracklet is in the gallery."""


def rank(
    protocol: str,
    embeddings: Float32[np.ndarray, "N C"],
    index: TrackletIndex,
    compare: Similarity | None = None,
) -> dict[str, Ranking]:
    """Ranks the gallery of a test split for each of its queries.

    Infrared queries search the visible gallery (`i2v`) and vice versa (`v2i`), in one trial.

    `hitsz_vcm/v1`: gallery entries of the query's identity and camera are removed. On this dataset
    there are none, which is checked.
    `buptcampus/full`: cameras are ignored.
    `buptcampus/official-bs64`: cameras are ignored, and visible queries and gallery entries beyond
    the last full batch of 64 are dropped, as in the published loader; infrared ones are not.
    `cross-modality`, for any other dataset: cameras are ignored.
    `cross-modality/other-cameras`: gallery entries of the query's identity and camera are removed.
    `any`, `any/other-cameras`: likewise, but infrared queries (`i2v`) and visible ones (`v2i`)
    search all other tracklets, of both modalities.

    A query that is in the gallery, too, does not find itself. Tracklets of people whose identity is
    not known are neither queries nor in the gallery.

    Args:
      protocol: one of PROTOCOLS, or a path.
      embeddings: float32[N, C], rows of length 1, one per test tracklet.
      index: describes the N tracklets in the same order. The gallery is in this order, the queries
        in the order of their rows.
      compare: see `similarity.make_similarity`; dot products by default.

    Returns:
      The ranking of each direction, `i2v` and `v2i`.

    Raises:
      InputError: the protocol is unknown, the embeddings do not fit the index or are not
        normalized, a direction has no queries or gallery, no query has a match, or a camera shows
        an identity in both modalities under `hitsz_vcm/v1`.
    """
    rules = find_protocol(protocol)
    embeddings = np.asarray(embeddings, np.float32)
    if embeddings.ndim != 2 or len(embeddings) != len(index.identities):
        raise InputError(
            f"embeddings must be [{len(index.identities)}, C], one row per tracklet of the index, "
            f"found {embeddings.shape}"
        )
    lengths = np.linalg.norm(embeddings, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < 1e-2))  # the negation also catches NaN
    if wrong.size:
        raise InputError(
            f"embeddings must have length 1, found {lengths[wrong[0]]} in row {wrong[0]} "
            f"({wrong.size} such rows)"
        )

    compare = compare or make_similarity()
    known = is_known(index.identities)
    rankings = {}
    for direction, (query_modality, gallery_modality) in _MODALITIES.items():
        query = np.flatnonzero(known & index.queries & (index.modalities == query_modality))
        query = query[np.argsort(index.rows[query], kind="stable")]
        in_gallery = rules.both_modalities | (index.modalities == gallery_modality)
        gallery = np.flatnonzero(known & index.galleries & in_gallery)
        if query_modality == VISIBLE:
            query = _whole_batches(query, rules.visible_batch)
        else:
            gallery = _whole_batches(gallery, rules.visible_batch)
        if not (query.size and gallery.size):
            raise InputError(
                f"{protocol}: {direction} needs queries and a gallery, found {query.size} and "
                f"{gallery.size}"
            )
        if rules.cameras_of_one_modality:
            _assert_cameras_of_one_modality(protocol, index, query, gallery)
        own = own_entries(query, gallery)
        similarity = compare(embeddings[query], embeddings[gallery], own)
        labels = number_labels(
            similarity.shape,
            index.identities[query],
            index.identities[gallery],
            index.cameras[query] if rules.camera_rule else None,
            index.cameras[gallery] if rules.camera_rule else None,
            own,
        )
        rankings[direction] = Ranking(query, gallery, similarity, labels)
        require_a_match(rankings[direction].result)
    return rankings


def summarize(
    protocol: str, rankings: Mapping[str, Ranking], index: TrackletIndex
) -> dict[str, Any]:
    """Returns the scores of rankings as a report.

    Returns:
      `{"protocol": name, "i2v": scores, "v2i": scores}`; scores are those of `scores.summary`,
      and the same `by_camera_pair` and `by_condition`.
    """
    report: dict[str, Any] = {"protocol": protocol}
    for direction, ranking in rankings.items():
        queries, result = ranking.queries, ranking.result
        identities = index.identities[queries]
        report[direction] = {
            **scores.summary(result, identities),
            "by_camera_pair": scores.by_camera_pair(ranking, identities, index.camera_names),
            "by_condition": scores.by_condition(result, identities, index.conditions[queries]),
        }
    return report


def evaluate(
    protocol: str, embeddings: Float32[np.ndarray, "N C"], index: TrackletIndex
) -> dict[str, Any]:
    """Returns the report of `summarize` for the rankings of `rank`, which raises errors."""
    return summarize(protocol, rank(protocol, embeddings, index), index)


def queries_of(rankings: Mapping[str, Ranking], index: TrackletIndex) -> dict[str, np.ndarray]:
    """Returns the scores of each matched query, to compare evaluations later.

    Returns:
      For each direction, with its name as in `i2v_scores`: `positions` in the index, `identities`,
      `conditions` and `scores` (see `scores.scores_of_queries`).
    """
    arrays = {}
    for direction, ranking in rankings.items():
        matched = ranking.queries[ranking.result.matched]
        arrays[f"{direction}_positions"] = matched
        arrays[f"{direction}_identities"] = index.identities[matched]
        arrays[f"{direction}_conditions"] = index.conditions[matched]
        arrays[f"{direction}_scores"] = scores.scores_of_queries(ranking.result)
    return arrays


def require_scorable(protocol: str, index: TrackletIndex) -> None:
    """Scores random embeddings, so that a protocol that cannot score a dataset fails early.

    Raises:
      InputError: as `rank` does.
    """
    embeddings = np.random.default_rng(0).standard_normal((len(index.identities), 8), np.float32)
    rank(protocol, embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), index)


def _whole_batches(entries: np.ndarray, batch_size: int) -> np.ndarray:
    return entries[: len(entries) // batch_size * batch_size]


def _assert_cameras_of_one_modality(
    protocol: str, index: TrackletIndex, query: np.ndarray, gallery: np.ndarray
) -> None:
    seen = set(zip(index.identities[gallery], index.cameras[gallery], strict=True))
    for identity, camera in zip(index.identities[query], index.cameras[query], strict=True):
        if (identity, camera) in seen:
            raise InputError(
                f"{protocol}: camera {camera} shows identity {identity} in both modalities, so "
                "the same-camera rule would remove gallery entries; check the index"
            )
