r"""Finds the tracklets that match others best, by the embeddings of launch/embed.py.

  python launch/search.py --query=mine.npz --gallery=mine.npz --query_modality=infrared \
    --gallery_modality=visible --output=matches

Prints the best matches of the first queries and writes <output>/matches.png and
<output>/matches.html, pictures of them, and <output>/matches.csv. The PNG file shows the first
50 queries only. A frame is green if query and match have the same identity, red if they do not,
grey if one of them is "unknown". A tracklet never matches itself.
"""

from pathlib import Path

from absl import flags

from launch import command

QUERY = flags.DEFINE_string("query", None, "Embeddings to search with, .npz.", required=True)
GALLERY = flags.DEFINE_string("gallery", None, "Embeddings to search in, .npz.", required=True)
MODALITIES = ["any", "visible", "infrared"]
QUERY_MODALITY = flags.DEFINE_enum("query_modality", "any", MODALITIES, "Which queries.")
GALLERY_MODALITY = flags.DEFINE_enum("gallery_modality", "any", MODALITIES, "Which of the gallery.")
TOP = flags.DEFINE_integer("top", 10, "Number of matches per query.", lower_bound=1)
MAX_QUERIES = flags.DEFINE_integer(
    "max_queries", 20, "Number of queries, the first ones.", lower_bound=1
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for pictures and table.", required=True)


def main() -> None:
    """Searches with the embeddings that the flags name."""
    from data_pipelines.io.files import write_file
    from data_pipelines.io.terminal import log
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

    pictures = (match_sheet.thumbnails(query, log), match_sheet.thumbnails(gallery, log))
    output = Path(OUTPUT.value)
    found = (query, gallery, results)
    write_file(output / "matches.csv", matches_csv(*found))
    write_file(output / "matches.png", match_sheet.matches_png(*found, pictures))
    write_file(output / "matches.html", match_sheet.matches_html(*found, pictures))
    queries = sum(QUERY_MODALITY.value in ("any", modality) for modality in query.modalities)
    print(f"{len(results)} of {queries} queries (--max_queries); pictures and table in {output}")


if __name__ == "__main__":
    command.run(main)
