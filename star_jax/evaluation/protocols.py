"""Named evaluation protocols: who is query and who is gallery, and what is reported."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from data_pipelines.schema import INFRARED, VISIBLE
from star_jax.evaluation.retrieval import RetrievalResult, evaluate_retrieval

PROTOCOLS = ("hitsz_vcm/v1",)

_DIRECTIONS = {"i2v": (INFRARED, VISIBLE), "v2i": (VISIBLE, INFRARED)}  # query, gallery
_RANKS = (1, 5, 10, 20)


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


def evaluate(protocol: str, embeddings: np.ndarray, index: TrackletIndex) -> dict[str, Any]:
    """Scores the embeddings of a test split.

    `hitsz_vcm/v1`: every infrared tracklet searches all visible ones (`i2v`) and the reverse
    (`v2i`), one trial; similarity is the dot product in float32. The rule that removes gallery
    entries of the query's identity and camera removes nothing on this set, which is asserted.

    Args:
      protocol: one of PROTOCOLS.
      embeddings: float32[N, C], rows of length 1, one a test tracklet.
      index: modality, identity and camera of the N tracklets, in the same order.

    Returns:
      `{"protocol": name, "i2v": scores, "v2i": scores}`; scores hold `rank1`, `rank5`, `rank10`,
      `rank20`, `map` and `minp` in percent, and the counts `queries` (those with a match),
      `gallery` and `unmatched` (queries without a match, left out of the means).

    Raises:
      ValueError: unknown protocol, embeddings that do not fit the index or are not normalised, a
        direction without queries or gallery, or an identity with one camera in both modalities.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    embeddings = np.asarray(embeddings, np.float32)
    if embeddings.ndim != 2 or len(embeddings) != len(index.identities):
        raise ValueError(
            f"embeddings must be [{len(index.identities)}, C], one row a tracklet of the index, "
            f"found {embeddings.shape}"
        )
    lengths = np.linalg.norm(embeddings, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < 1e-2))  # the negation catches NaN too
    if wrong.size:
        raise ValueError(
            f"embeddings must have length 1, found {lengths[wrong[0]]} in row {wrong[0]} "
            f"({wrong.size} such rows)"
        )

    report: dict[str, Any] = {"protocol": protocol}
    for direction, (query_modality, gallery_modality) in _DIRECTIONS.items():
        query = np.flatnonzero(index.modalities == query_modality)
        gallery = np.flatnonzero(index.modalities == gallery_modality)
        if not (query.size and gallery.size):
            raise ValueError(
                f"{direction} needs queries and a gallery, found {query.size} and {gallery.size}"
            )
        seen = set(zip(index.identities[gallery], index.cameras[gallery], strict=True))
        for identity, camera in zip(index.identities[query], index.cameras[query], strict=True):
            if (identity, camera) in seen:
                raise ValueError(
                    f"{protocol}: camera {camera} shows identity {identity} in both modalities, so "
                    "the same-camera rule would remove gallery entries; check the index"
                )
        report[direction] = _scores(
            evaluate_retrieval(
                embeddings[query] @ embeddings[gallery].T,
                query_ids=index.identities[query],
                gallery_ids=index.identities[gallery],
                query_cameras=index.cameras[query],
                gallery_cameras=index.cameras[gallery],
            )
        )
    return report


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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _cell(value: float | int) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
