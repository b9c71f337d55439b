"""Measures the ranking of galleries that do not fit into memory, streamed from the disk.

    python -m benchmarks.large_gallery --queries=2000 --gallery=200000

Writes random embeddings to a temporary folder, ranks the gallery for every query with
`star_jax.evaluation.streaming.evaluate_embeddings`, and prints the time, the memory (without the
pages of the files, which the system drops when it needs them) and the time that 100,000 queries in
1,000,000 entries would take at this rate of similarities. Linux only.
"""

import argparse
import contextlib
import pathlib
import tempfile
import threading
import time
from collections.abc import Iterator

import numpy as np

from star_jax.evaluation.streaming import evaluate_embeddings

ROWS = 4096  # written at a time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=2000, help="default: 2000")
    parser.add_argument("--gallery", type=int, default=200_000, help="default: 200000")
    parser.add_argument("--width", type=int, default=2048, help="of an embedding (default: 2048)")
    parser.add_argument("--folder", help="where the embeddings are written (default: temporary)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        queries, gallery = (
            write_embeddings(pathlib.Path(folder) / f"{seed}.npy", count, args.width, seed)
            for seed, count in enumerate((args.queries, args.gallery))
        )
        rng = np.random.default_rng(2)
        identities = max(1, args.gallery // 20)
        query_ids, gallery_ids = (rng.integers(identities, size=len(a)) for a in (queries, gallery))
        start = time.perf_counter()
        with measured_memory() as gigabytes:
            result = evaluate_embeddings(
                queries, gallery, query_ids=query_ids, gallery_ids=gallery_ids
            )
        seconds = time.perf_counter() - start
    rate = args.queries * args.gallery / seconds
    print(
        f"{args.queries} x {args.gallery} embeddings of {args.width} numbers: {seconds:.0f} s, "
        f"{rate / 1e6:.1f} million similarities/s, {max(gigabytes):.1f} GB at the peak; mAP "
        f"{100 * result.mean_ap:.3f} %"
    )
    print(f"100,000 x 1,000,000 at this rate: {1e11 / rate / 3600:.1f} hours")


@contextlib.contextmanager
def measured_memory() -> Iterator[list[float]]:
    """Yields a list of the process's memory in GB, sampled every 50 ms."""
    samples, done = [0.0], threading.Event()

    def sample() -> None:
        while not done.wait(0.05):
            status = pathlib.Path("/proc/self/status").read_text()
            samples.append(int(status.split("RssAnon:")[1].split()[0]) / 2**20)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def write_embeddings(path: pathlib.Path, count: int, width: int, seed: int) -> np.ndarray:
    """Returns random embeddings, float32[count, width], that stay on the disk."""
    rng = np.random.default_rng(seed)
    array = np.lib.format.open_memmap(path, "w+", np.float32, (count, width))
    for start in range(0, count, ROWS):
        rows = rng.standard_normal((min(ROWS, count - start), width), np.float32)
        array[start : start + ROWS] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    array.flush()
    stored: np.ndarray = np.load(path, mmap_mode="r")
    return stored


if __name__ == "__main__":
    main()
