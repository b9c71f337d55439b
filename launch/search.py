"""Searches tracklets among others by the embeddings of launch/embed.py.

  python launch/search.py --query=mine.npz --gallery=mine.npz --query_modality=infrared \
    --gallery_modality=visible --output=matches

Prints the best matches of the first queries and writes <output>/matches.png and
<output>/matches.html, pictures of them, and <output>/matches.csv. The PNG file shows the first
50 queries only. A frame is green where query and match have the same identity, red where they have
not, grey where one is "unknown". A tracklet does not find itself.
"""

import sys
from pathlib import Path

import command
from absl import flags

QUERY = flags.DEFINE_string("query", None, "Embeddings to search with, .npz.", required=True)
GALLERY = flags.DEFINE_string("gallery", None, "Embeddings to search in, .npz.", required=True)
MODALITIES = ["any", "visible", "infrared"]
QUERY_MODALITY = flags.DEFINE_enum("query_modality", "any", MODALITIES, "Which queries.")
GALLERY_MODALITY = flags.DEFINE_enum("gallery_modality", "any", MODALITIES, "Which of the gallery.")
TOP = flags.DEFINE_integer("top", 10, "How many matches of a query.", lower_bound=1)
MAX_QUERIES = flags.DEFINE_integer(
    "max_queries", 20, "The first so many are searched with.", lower_bound=1
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for pictures and table.", required=True)


def main() -> None:
    """Searches as the flags say."""
    from data_pipelines.io.files import write_file
    from data_pipelines.io.terminal import printable
    from star_jax.evaluation import embeddings, match_sheet
    from star_jax.evaluation.search import format_result, matches_csv, search

    query, gallery = embeddings.load(QUERY.value), embeddings.load(GALLERY.value)
    results = search(
        query,
        gallery,
        query_modality=QUERY_MODALITY.value,
        gallery_modality=GALLERY_MODALITY.value,
        top=TOP.value,
        max_queries=MAX_QUERIES.value,
    )
    for result in results:
        print(format_result(query, gallery, result), end="\n\n")

    def tell(message: str) -> None:
        print(printable(message), file=sys.stderr)

    pictures = (match_sheet.thumbnails(query, tell), match_sheet.thumbnails(gallery, tell))
    output = Path(OUTPUT.value)
    found = (query, gallery, results)
    write_file(output / "matches.csv", matches_csv(*found))
    write_file(output / "matches.png", match_sheet.matches_png(*found, pictures))
    write_file(output / "matches.html", match_sheet.matches_html(*found, pictures))
    queries = sum(QUERY_MODALITY.value in ("any", modality) for modality in query.modalities)
    print(f"{len(results)} of {queries} queries (--max_queries); pictures and table in {output}")


if __name__ == "__main__":
    command.run(main)
