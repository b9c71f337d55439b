r"""Searches a dataset for the people of its queries, and shows the best matches on a web page.

  python launch/search.py --workdir=runs/star --source=data/folder/1.1.0 --output=matches
  python launch/search.py --checkpoint=star.safetensors --source=data/folder/1.1.0 \
    --query_modality=visible --gallery_modality=infrared --output=matches
  python launch/search.py --query=monday.npz --gallery=tuesday.npz --output=matches

Embeds the dataset as launch/embed.py does, unless launch/eval.py or an earlier search has left its
embeddings, embeddings-*.npz in <workdir>/eval or <output>: they are reused as long as weights,
dataset, split and clips are the same. Or searches files of launch/embed.py. Prints a line
for each query and the scores, and writes <output>/matches.html, one file that needs no network, and
<output>/matches.csv, the matches of all queries. A tracklet never matches itself. In a
multi-process job (Cloud TPU, SLURM, Open MPI), run this command in every process.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from data_pipelines.errors import InputError
from launch import command

WORKDIR, CHECKPOINT, TRUSTED = command.define_checkpoint(
    ", or a .safetensors file of launch/export.py"
)
WEIGHTS = command.define_weights()
SOURCE = command.define_path(
    "source", None, "The packed dataset to embed and search.", addresses=True
)
SPLIT = flags.DEFINE_string("split", "test", "Split to search.")
CLIPS = command.define_clips()
QUERY = command.define_path("query", None, "Query embeddings, .npz, instead of --source.")
GALLERY = command.define_path("gallery", None, "Gallery embeddings, .npz, for --query.")
MODALITIES = ["infrared", "visible", "any"]
QUERY_MODALITY = flags.DEFINE_enum(
    "query_modality", "infrared", MODALITIES, "Modality of the queries."
)
GALLERY_MODALITY = flags.DEFINE_enum(
    "gallery_modality", "visible", MODALITIES, "Modality of the gallery."
)
TOP = flags.DEFINE_integer("top", 10, "Number of matches per query.", lower_bound=1)
MAX_QUERIES = flags.DEFINE_integer(
    "max_queries",
    20,
    "Number of queries to print and show, evenly spaced; scores use all queries.",
    lower_bound=1,
)
OUTPUT = command.define_path("output", None, "Folder for page and table.", required=True)


def main() -> None:
    """Searches as the flags say."""
    require_one_source()
    from data_pipelines.io.files import write_file
    from data_pipelines.io.remote import locate
    from data_pipelines.io.terminal import log, printable
    from data_pipelines.skeletons.sheets import evenly_spaced
    from star_jax.distributed import processes
    from star_jax.embedding import embeddings
    from star_jax.embedding.embed import embed_once, open_to_embed, require_skeletons
    from star_jax.network import load_weights, locate_checkpoint
    from star_jax.report.run import name_of_run
    from star_jax.runs import run_files
    from star_jax.search.page import search_page
    from star_jax.search.search import (
        format_counts,
        format_results,
        format_scores,
        matches_csv,
        search,
    )

    output, run = Path(locate(OUTPUT.value)), ""
    if QUERY.value and GALLERY.value:
        query, gallery = embeddings.load(QUERY.value), embeddings.load(GALLERY.value)
    elif SOURCE.value:
        processes.start()
        named = command.either(WORKDIR, CHECKPOINT)
        run = name_of_run(locate_checkpoint(named)[0])
        network = load_weights(named, weights=WEIGHTS.value, trusted=TRUSTED.value)
        split = open_to_embed(SOURCE.value).split(SPLIT.value)
        evaluations = run_files.reports_folder(locate_checkpoint(named)[0])
        network = network.with_config(**{"eval.clips": CLIPS.value})
        require_skeletons(network, split)
        query = gallery = embed_once(network, split, output, also_in=[evaluations])
        if not processes.is_first():
            return
    found = search(
        query,
        gallery,
        query_modality=QUERY_MODALITY.value,
        gallery_modality=GALLERY_MODALITY.value,
        top=TOP.value,
    )
    shown = [found.results[i] for i in evenly_spaced(len(found.results), MAX_QUERIES.value)]
    print(format_results(found, shown), end="\n\n")
    print(f"{format_counts(found)}\n{format_scores(found)}")

    write_file(output / "matches.csv", matches_csv(found))
    page = search_page(
        found,
        shown,
        run=run,
        command=shlex.join(["python", *sys.argv]),
        follow=bool(SOURCE.value),
        warn=log,
    )
    write_file(output / "matches.html", page)
    written = (
        f"{len(shown):,} of {len(found.results):,} queries (--max_queries) on the page "
        f"{output / 'matches.html'}; all of them in {output / 'matches.csv'}"
    )
    print(printable(written))


def require_one_source() -> None:
    """Raises an InputError unless the flags name either a network and a dataset, or two files."""
    network, files = (WORKDIR, CHECKPOINT, SOURCE), (QUERY, GALLERY)
    given = [{flag.name for flag in group if flag.value} for group in (network, files)]
    complete = [{"workdir", "source"}, {"checkpoint", "source"}, {"query", "gallery"}]
    if given[0] | given[1] not in complete:
        found = ", ".join(f"--{name}" for name in sorted(given[0] | given[1])) or "none of them"
        raise InputError(
            "pass a network (--workdir or --checkpoint) and a packed dataset (--source), or two "
            f"files of launch/embed.py (--query and --gallery); found {found}"
        )


if __name__ == "__main__":
    command.run(main)
