"""Measures an evaluation from packed records to scores, and what takes its time.

    python -m benchmarks.evaluation --workdir=runs/demo

Embeds the test split twice, and counts the second time, when everything is compiled. Then loads all
clips without embedding them, and ranks and scores the embeddings by the protocol of the config,
with intervals, camera pairs and conditions. Prints tracklets/s and shares of the time;
loading and embedding overlap.
"""

import argparse
import time

import numpy as np

from data_pipelines.records.dataset import open_dataset
from star_jax.embedding.embed import embed_split, split_batches, whole_batch
from star_jax.evaluation.protocols import evaluate
from star_jax.network import locate_checkpoint, restore_network


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="a run")
    parser.add_argument("--dataset_dir", help="a packed dataset (default: the config's)")
    args = parser.parse_args()
    network = restore_network(*locate_checkpoint(args.workdir))
    config = network.config
    split = open_dataset(args.dataset_dir or config.data.dir).split("test")
    index = split.index

    embed_split(network, split)
    start = time.perf_counter()
    embeddings = embed_split(network, split)
    embedded = time.perf_counter()
    batches = split_batches(
        network,
        split,
        np.arange(len(split)),
        batch_size=whole_batch(config.eval.batch_size, network.mesh),
        clips=config.eval.clips,
    )
    loaded = sum(int((batch["position"] >= 0).sum()) for _, batch in batches)
    loaded_at = time.perf_counter()
    evaluate(config.eval.protocol, embeddings, index)
    scored = time.perf_counter()

    total = (embedded - start) + (scored - loaded_at)
    print(
        f"{len(index.rows)} tracklets, {loaded} clips of {config.data.clip_length} frames: "
        f"{total:.2f} s, {len(index.rows) / total:.0f} tracklets/s"
    )
    for name, seconds in (
        ("load and embed", embedded - start),
        ("load alone", loaded_at - embedded),
        ("rank and score", scored - loaded_at),
    ):
        print(f"{name}: {seconds:.2f} s, {100 * seconds / total:.0f} %")


if __name__ == "__main__":
    main()
