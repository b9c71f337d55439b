"""Benchmarks the evaluation of rankings against loops over queries, as are common in this field.

    python -m benchmarks.retrieval

Random similarities, identities and cameras of the size of HITSZ-VCM's test split; both directions,
all metrics: Rank-k, mAP and mINP. One loop uses NumPy for each query; the other is what most
evaluation scripts of the field do: all galleries are sorted, and the precision at each place of
each is computed in a list of Python. The three run alternately; the fastest round of each counts,
in seconds by the clock, so run it on an idle machine. Their results are compared.
"""

import argparse
import time

import numpy as np

from star_jax.evaluation.retrieval import evaluate_retrieval


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=4584, help="tracklets (default: 4584)")
    parser.add_argument("--gallery", type=int, default=5099, help="tracklets (default: 5099)")
    parser.add_argument("--identities", type=int, default=427, help="default: 427")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default: 3)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    similarity = rng.standard_normal((args.queries, args.gallery), np.float32)
    ids, cameras = (
        [np.array(rng.integers(0, n, size)) for size in similarity.shape]
        for n in (args.identities, 12)
    )
    directions = [
        (similarity, *ids, *cameras),
        (np.ascontiguousarray(similarity.T), *ids[::-1], *cameras[::-1]),
    ]
    functions = (evaluate_all, loop_with_numpy, loop_with_lists)
    seconds = dict.fromkeys(functions, np.inf)
    results = {}
    for _ in range(args.rounds):
        for function in functions:
            start = time.perf_counter()
            results[function] = [function(*direction) for direction in directions]
            seconds[function] = min(seconds[function], time.perf_counter() - start)
    print(f"{args.queries} x {args.gallery}, both directions, fastest of {args.rounds} rounds")
    for function in functions:
        ratio = seconds[function] / seconds[evaluate_all]
        difference = max(
            float(np.abs(ours - theirs).max())
            for ours, theirs in zip(results[evaluate_all], results[function], strict=True)
        )
        print(
            f"{function.__name__}: {seconds[function]:.3f} s, {ratio:.1f} times as long as "
            f"evaluate_all; largest difference of a metric {difference:.1e}"
        )


def evaluate_all(
    similarity: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> np.ndarray:
    """Returns mAP, mINP and the CMC."""
    result = evaluate_retrieval(
        similarity,
        query_ids=query_ids,
        gallery_ids=gallery_ids,
        query_cameras=query_cameras,
        gallery_cameras=gallery_cameras,
    )
    return np.concatenate([[result.mean_ap, result.mean_inp], result.cmc])


def loop_with_numpy(
    similarity: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> np.ndarray:
    """The same, by sorting the whole gallery for each query."""
    cmc, precisions, penalties = np.zeros(len(gallery_ids)), [], []
    for row, identity, camera in zip(similarity, query_ids, query_cameras, strict=True):
        order = np.argsort(-row, kind="stable")
        same = gallery_ids[order] == identity
        kept = ~(same & (gallery_cameras[order] == camera))
        ranks = 1 + np.flatnonzero(same[kept])
        if not len(ranks):
            continue
        cmc[ranks[0] - 1 :] += 1
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
        penalties.append(len(ranks) / ranks[-1])
    return np.concatenate([[np.mean(precisions), np.mean(penalties)], cmc / len(precisions)])


def loop_with_lists(
    similarity: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> np.ndarray:
    """The same, with lists of Python for each query."""
    orders = np.argsort(-similarity, axis=1, kind="stable")
    all_cmc, precisions, penalties = [], [], []
    for order, identity, camera in zip(orders, query_ids, query_cameras, strict=True):
        kept = ~((gallery_ids[order] == identity) & (gallery_cameras[order] == camera))
        hits = (gallery_ids[order] == identity)[kept].astype(np.int32)
        if not hits.any():
            continue
        found = hits.cumsum()
        penalties.append(hits.sum() / (1 + np.flatnonzero(hits)[-1]))
        precision = [count / (place + 1) for place, count in enumerate(found)]
        precisions.append((np.array(precision) * hits).sum() / hits.sum())
        cmc = np.ones(len(gallery_ids))  # a removed entry takes no rank
        cmc[: len(found)] = np.minimum(found, 1)
        all_cmc.append(cmc)
    means = np.array([np.mean(precisions), np.mean(penalties)])
    return np.concatenate([means, np.mean(all_cmc, axis=0)])


if __name__ == "__main__":
    main()
