"""The page of a search: its scores, and the best matches of queries as pictures."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.io.progress import with_progress
from data_pipelines.io.terminal import printable
from star_jax.embedding.embeddings import Embeddings
from star_jax.evaluation.ranking import Match, Result
from star_jax.evaluation.scores import METRIC_NAMES
from star_jax.report import analysis, figures
from star_jax.report.page import (
    Card,
    Folded,
    Panels,
    RankedList,
    RankedLists,
    Score,
    Section,
    Table,
    kind_of,
    make_page,
)
from star_jax.report.pictures import (
    FRAME_HEIGHT,
    SpreadFrames,
    data_address,
    joined,
    open_spread_frames,
)
from star_jax.report.run import name_of_dataset
from star_jax.report.sections import score_of
from star_jax.report.theme import render
from star_jax.runs.run_files import git_revision, short_revision
from star_jax.search.search import (
    METRICS,
    Found,
    facts_of,
    first_match_as_text,
    format_counts,
    same_split,
)

STRIP = 6  # frames shown of a query
MATCH_HEIGHT = 240  # of the frame shown of a match, pixels


def search_page(
    found: Found,
    shown: Sequence[Result],
    *,
    run: str = "",
    command: str = "",
    follow: bool = False,
    warn: Callable[[str], None],
) -> bytes:
    """Returns the page of a search, a self-contained HTML file.

    Args:
      found: what the search has found.
      shown: those of its results to show with their matches.
      run: name of the run or file from which the network comes; "" if it is not known.
      command: the command line, which the page shows.
      follow: whether datasets at a URL are accessed, see `pictures.open_spread_frames`.
      warn: takes the reason why there are no pictures.
    """
    query, gallery = found.query, found.gallery
    facts = {"Run": run} if run else {}
    made = query.provenance
    facts |= {"Step": f"{made.step:,}", "Weights": printable(made.weights[:8])}
    if same_split(query, gallery):
        facts["Dataset"] = _dataset(query)
    else:
        facts |= {"Queries from": _dataset(query), "Gallery from": _dataset(gallery)}
    facts |= {
        "Searched by": short_revision({"git_revision": git_revision()}),
        "Written": time.strftime("%Y-%m-%d %H:%M"),
    }
    of_query = open_spread_frames(query, warn, follow=follow)
    of_gallery = of_query
    if not same_split(query, gallery):
        of_gallery = open_spread_frames(gallery, warn, follow=follow)
    sections = [
        _scores(found),
        _queries(found, shown, of_query, of_gallery),
        Section("origin", "How it was made", "", [Folded("Command that makes this page", command)]),
    ]
    kinds = ["all" if modality == "any" else modality for modality in found.modalities]
    subtitle = f"{kinds[0]} queries, {kinds[1]} gallery"
    title = f"Search in {printable(name_of_dataset(gallery.dataset_dir))}"
    return make_page(title, subtitle, facts, sections)


def _dataset(embeddings: Embeddings) -> str:
    """Returns name, version and split of a dataset, and the start of its fingerprint."""
    made = embeddings.provenance
    split = "" if made.split == "test" else f", {made.split}"
    name = f"{name_of_dataset(embeddings.dataset_dir)}{split}"
    return printable(f"{name}, {made.dataset[:8]}")


def _scores(found: Found) -> Section:
    """Returns the scores and the distribution of the similarities."""
    section = Section("scores", "Scores", f"{format_counts(found)}.", beside=True)
    blocks: list[Table | Panels] = []
    missing = "No scores: no query of a known identity has a true match in the gallery."
    if found.scores is not None:
        missing = ""
        rows: list[list[str | Score]] = [
            [METRIC_NAMES[metric], score_of(found.scores, metric)] for metric in METRICS
        ]
        caption = (
            f"In percent, over {found.scores['queries']:,} queries and a gallery of "
            f"{found.scores['gallery']:,} tracklets of known identities, with 95 % "
            "intervals over the identities of the queries. No tracklet matches itself. Bars run "
            "from 0 to 100 %."
        )
        blocks.append(Table(["", "all queries"], rows, caption))
    densities = score_densities(found)
    if densities.num_same + densities.num_different:
        figure = figures.densities("All pairs of query and gallery", "cosine similarity", densities)
        caption = (
            "Distributions of the similarities by which the gallery is ranked, each with an area "
            "of 1. Pairs with an unknown identity are left out. The less filled and hollow shapes "
            "overlap, the better a threshold separates the identities."
        )
        blocks.append(Panels([render("similarities", figure)], caption))
    return section._replace(blocks=blocks, missing=missing)


def score_densities(found: Found) -> analysis.Densities:
    """Returns the similarities of all pairs of a query and a gallery entry of known identities.

    No tracklet is paired with itself.
    """
    ranking = found.ranking
    ids = (
        found.query.index.identities[ranking.queries],
        found.gallery.index.identities[ranking.gallery],
    )
    counted = np.ones(ranking.similarity.shape, bool)
    counted[ranking.labels.removed()] = False
    edges = np.linspace(-1, 1, 2 * analysis.BINS + 1)
    return analysis.densities(ranking.similarity, *ids, counted, edges)


def _queries(
    found: Found,
    shown: Sequence[Result],
    of_query: SpreadFrames | None,
    of_gallery: SpreadFrames | None,
) -> Section:
    """Returns the matches of the queries that are shown."""
    some = "All queries"
    if len(shown) < len(found.results):
        some = (
            f"{len(shown):,} of {len(found.results):,} queries, spread evenly (--max_queries); "
            "matches.csv lists the matches of all, and the scores are of all"
        )
    lead = (
        f"{some}. Above, frames of a query in order of time, with their skeletons where there are "
        "any; below, its best matches by cosine similarity, a middle frame of each. ✓ and a solid "
        "border: the query's identity. ✗ and a dashed border: another one. ? and a dotted border: "
        "one of the two is unknown."
    )
    lists = []
    for result in with_progress(shown, len(shown), "rendering", "queries"):
        identity, camera, modality, frame = map(printable, facts_of(found.query, result.query))
        strip = ""
        if of_query is not None:
            strip = data_address(joined(of_query(result.query, STRIP, FRAME_HEIGHT), axis=1))
        title = f"{_first_match(result, found)}; {modality}, camera {camera}, {frame}"
        cards = [
            _card(place, match, found.gallery, of_gallery)
            for place, match in enumerate(result.matches, start=1)
        ]
        lists.append(RankedList(identity, title, cards, strip))
    return Section("queries", "Queries", lead, [RankedLists("", lists)])


def _first_match(result: Result, found: Found) -> str:
    if result.first_match is None:
        return "identity unknown"
    if not result.first_match:
        return "no match in the gallery"
    return (
        f"first true match at rank {first_match_as_text(result)} of {len(found.ranking.gallery):,}"
    )


def _card(place: int, match: Match, gallery: Embeddings, frames: SpreadFrames | None) -> Card:
    identity, camera, modality, _ = map(printable, facts_of(gallery, match.position))
    picture = ""
    if frames is not None:
        picture = data_address(frames(match.position, 1, MATCH_HEIGHT)[0])
    return Card(
        picture=picture,
        kind=kind_of(match.same),
        title=f"{place}: {match.score:.3f}",
        identity=identity,
        where=f"{modality}, camera {camera}",
    )
