"""Evaluation protocols: which tracklets are queries and gallery, and what is reported."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped

from data_pipelines.errors import InputError
from data_pipelines.io.tables import aligned
from data_pipelines.parts import find_part
from data_pipelines.schema import INFRARED, VISIBLE
from star_jax.evaluation.retrieval import RetrievalResult, evaluate_retrieval


class Rules(NamedTuple):
    """The rules of a protocol.

    Attributes:
      camera_rule: whether gallery entries of the query's identity and camera are removed.
      visible_batch: batch size; visible queries and gallery entries beyond the last full batch are
        dropped.
    """

    camera_rule: bool = False
    visible_batch: int = 1


PROTOCOLS: Mapping[str, Rules] = {
    "hitsz_vcm/v1": Rules(camera_rule=True),
    "buptcampus/full": Rules(),
    "buptcampus/official-bs64": Rules(visible_batch=64),
}

_DIRECTIONS = {"i2v": (INFRARED, VISIBLE), "v2i": (VISIBLE, INFRARED)}  # query, gallery
_RANKS = (1, 5, 10, 20)


def find_protocol(name: str) -> Rules:
    """Returns the rules at a name or path; raises an InputError if there are none."""
    return find_part(PROTOCOLS, name, "config.eval.protocol", needs=Rules._fields)


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
    def rows(self) -> Int[np.ndarray, " N"]:
        """int[N], the order of the queries."""

    @property
    def queries(self) -> Bool[np.ndarray, " N"]:
        """bool[N], whether a tracklet is a query."""

    @property
    def galleries(self) -> Bool[np.ndarray, " N"]:
        """bool[N], whether a tracklet is in the gallery."""


def evaluate(
    protocol: str, embeddings: Float32[np.ndarray, "N C"], index: TrackletIndex
) -> dict[str, Any]:
    """Scores the embeddings of a test split.

    Infrared queries search the visible gallery (`i2v`) and vice versa (`v2i`), in one trial;
    similarity is the dot product in float32.

    `hitsz_vcm/v1`: gallery entries of the query's identity and camera are removed. On this dataset
    there are none, which is checked.
    `buptcampus/full`: cameras are ignored.
    `buptcampus/official-bs64`: cameras are ignored, and visible queries and gallery entries beyond
    the last full batch of 64 are dropped, as in the published loader; infrared ones are not.

    Args:
      protocol: one of PROTOCOLS, or a path.
      embeddings: float32[N, C], rows of length 1, one per test tracklet.
      index: describes the N tracklets in the same order. The gallery is in this order, the queries
        in the order of their rows.

    Returns:
      `{"protocol": name, "i2v": scores, "v2i": scores}`; scores hold `rank1`, `rank5`, `rank10`,
      `rank20`, `map` and `minp` in percent, and the counts `queries` (with a match),
      `gallery` and `unmatched` (queries without a match, left out of the means).

    Raises:
      InputError: the protocol is unknown, the embeddings do not fit the index or are not
        normalized, a direction has no queries or gallery, no query has a match, or, with the camera
        rule, a camera shows an identity in both modalities.
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

    report: dict[str, Any] = {"protocol": protocol}
    for direction, (query_modality, gallery_modality) in _DIRECTIONS.items():
        query = np.flatnonzero(index.queries & (index.modalities == query_modality))
        query = query[np.argsort(index.rows[query], kind="stable")]
        gallery = np.flatnonzero(index.galleries & (index.modalities == gallery_modality))
        if query_modality == VISIBLE:
            query = _whole_batches(query, rules.visible_batch)
        else:
            gallery = _whole_batches(gallery, rules.visible_batch)
        if not (query.size and gallery.size):
            raise InputError(
                f"{protocol}: {direction} needs queries and a gallery, found {query.size} and "
                f"{gallery.size}"
            )
        cameras = {}
        if rules.camera_rule:
            _assert_cameras_of_one_modality(protocol, index, query, gallery)
            cameras = {
                "query_cameras": index.cameras[query],
                "gallery_cameras": index.cameras[gallery],
            }
        report[direction] = _scores(
            evaluate_retrieval(
                embeddings[query] @ embeddings[gallery].T,
                query_ids=index.identities[query],
                gallery_ids=index.identities[gallery],
                **cameras,
            )
        )
    return report


def require_scorable(protocol: str, index: TrackletIndex) -> None:
    """Scores random embeddings, so that a protocol that cannot score a dataset fails early.

    Raises:
      InputError: as `evaluate` does.
    """
    embeddings = np.random.default_rng(0).standard_normal((len(index.identities), 8), np.float32)
    evaluate(protocol, embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), index)


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


def _scores(result: RetrievalResult) -> dict[str, float | int]:
    return {
        **{f"rank{k}": 100 * result.rank(k) for k in _RANKS},
        "map": 100 * result.mean_ap,
        "minp": 100 * result.mean_inp,
        "queries": result.num_queries,
        "gallery": result.num_gallery,
        "unmatched": result.num_unmatched,
    }


def format_table(report: Mapping[str, Any]) -> str:
    """Returns the report of `evaluate` as a plain text table, one row per direction."""
    columns = list(report["i2v"])
    rows = [
        [report["protocol"], *columns],
        *(
            [direction, *(_cell(report[direction][column]) for column in columns)]
            for direction in _DIRECTIONS
        ),
    ]
    return aligned(rows)


def _cell(value: float | int) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
