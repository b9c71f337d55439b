"""Named evaluation protocols: who is query and who is gallery, and what is reported."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.io.tables import aligned
from data_pipelines.parts import find_part
from data_pipelines.schema import INFRARED, VISIBLE
from star_jax.evaluation.retrieval import RetrievalResult, evaluate_retrieval


class Rules(NamedTuple):
    """What sets a protocol apart.

    Attributes:
      camera_rule: whether gallery entries of the query's identity and camera are removed.
      visible_batch: the last visible entries of query and of gallery that do not fill a batch of
        this size are dropped.
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
    """Returns the rules of a name, or at a path; raises InputError if there are none."""
    return find_part(PROTOCOLS, name, "config.eval.protocol", needs=Rules._fields)


class TrackletIndex(Protocol):
    """What an evaluation must know of the N embedded tracklets."""

    @property
    def modalities(self) -> np.ndarray:
        """int[N], VISIBLE or INFRARED."""

    @property
    def identities(self) -> np.ndarray:
        """str[N]."""

    @property
    def cameras(self) -> np.ndarray:
        """int[N]."""

    @property
    def rows(self) -> np.ndarray:
        """int[N], the order of the queries."""

    @property
    def queries(self) -> np.ndarray:
        """bool[N], which are searched with."""

    @property
    def galleries(self) -> np.ndarray:
        """bool[N], which are searched for."""


def evaluate(protocol: str, embeddings: np.ndarray, index: TrackletIndex) -> dict[str, Any]:
    """Scores the embeddings of a test split.

    The infrared queries search the visible gallery (`i2v`) and the reverse (`v2i`), one trial;
    similarity is the dot product in float32.

    `hitsz_vcm/v1`: the rule that removes gallery entries of the query's identity and camera removes
    nothing on this set, which is asserted.
    `buptcampus/full`: there is no such rule; cameras play no part.
    `buptcampus/official-bs64`: likewise, and the last visible queries and gallery entries that do
    not fill a batch of 64 are left out, as the published loader does. Of a multiple of 64, and of
    infrared entries, none is.

    Args:
      protocol: one of PROTOCOLS.
      embeddings: float32[N, C], rows of length 1, one a test tracklet.
      index: what is known of the N tracklets, in the same order. The gallery is taken in this
        order, the queries in the order of their rows.

    Returns:
      `{"protocol": name, "i2v": scores, "v2i": scores}`; scores hold `rank1`, `rank5`, `rank10`,
      `rank20`, `map` and `minp` in percent, and the counts `queries` (those with a match),
      `gallery` and `unmatched` (queries without a match, left out of the means).

    Raises:
      ValueError: unknown protocol, embeddings that do not fit the index or are not normalized, a
        direction without queries or gallery, or an identity with one camera in both modalities.
    """
    rules = find_protocol(protocol)
    embeddings = np.asarray(embeddings, np.float32)
    if embeddings.ndim != 2 or len(embeddings) != len(index.identities):
        raise InputError(
            f"embeddings must be [{len(index.identities)}, C], one row a tracklet of the index, "
            f"found {embeddings.shape}"
        )
    lengths = np.linalg.norm(embeddings, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < 1e-2))  # the negation catches NaN too
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
    """Scores random embeddings, so that a protocol which cannot score a dataset fails early.

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
    """The report of `evaluate` as a plain text table, one row a direction."""
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
