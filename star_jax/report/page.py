"""The page of a report or a search: its sections, and the template that makes HTML of them.

Names from data are untrusted: the template escapes them, and the page may load nothing. Only the
SVG of `theme.render` is inserted as it is.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jinja2

from star_jax.report.theme import COLORS, Rendered

# How matches are marked on the page, so that colors alone need not tell them apart.
MARKS = {
    "same": ("✓", "the query's identity"),
    "other": ("✗", "another identity"),
    "unknown": ("?", "identity unknown"),
}


class Panels(NamedTuple):
    """Figures side by side, as many as fit.

    Attributes:
      figures: drawn and rendered.
      caption: what they show and how it was computed.
    """

    figures: Sequence[Rendered]
    caption: str


class Card(NamedTuple):
    """A tracklet of a ranked list.

    Attributes:
      picture: `data:` URL of the picture; "" for none.
      kind: "query", or how a match's identity compares: "same", "other" or "unknown".
      title: "query", or the rank and the score.
      identity: as in the dataset.
      where: modality and camera.
    """

    picture: str
    kind: str
    title: str
    identity: str
    where: str


class RankedList(NamedTuple):
    """A query and its first matches.

    Attributes:
      kind: "best", "median" or "worst", or the query's identity.
      title: the query's scores, and what else is known of it.
      cards: the query's, then those of the matches by rank.
      strip: URL of a picture of the query's frames; cards are of the matches alone. "" for none.
    """

    kind: str
    title: str
    cards: Sequence[Card]
    strip: str = ""


class RankedLists(NamedTuple):
    """Several ranked lists.

    Attributes:
      title: "" for none.
      lists: in order.
    """

    title: str
    lists: Sequence[RankedList]


def kind_of(same: bool | None) -> str:
    """Returns the kind of a match's card: whether identities are the same, None if unknown."""
    return {True: "same", False: "other", None: "unknown"}[same]


class Score(NamedTuple):
    """A score in percent and its 95 % interval."""

    mean: float
    low: float
    high: float


class Table(NamedTuple):
    """A table; cells are texts or Scores.

    Attributes:
      header: of the columns.
      rows: the first cell of each is its name.
      caption: as of Panels.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | Score]]
    caption: str


class Folded(NamedTuple):
    """A text that is shown on a click."""

    title: str
    text: str


class Section(NamedTuple):
    """A part of the page.

    Attributes:
      anchor: for links.
      title: the heading.
      lead: what the section is about.
      blocks: its content, in order.
      missing: why there is none, or why some of it is missing.
      beside: whether blocks are side by side where there is room.
    """

    anchor: str
    title: str
    lead: str
    blocks: Sequence[Panels | RankedLists | Table | Folded] = ()
    missing: str = ""
    beside: bool = False


def make_page(
    title: str, subtitle: str, facts: Mapping[str, str], sections: Sequence[Section]
) -> bytes:
    """Returns the page, a self-contained HTML file.

    Args:
      title: of the page.
      subtitle: below it.
      facts: shown at the top, by name.
      sections: in order.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("star_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["units"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    environment.tests["a"] = lambda value, name: type(value).__name__ == name
    page = environment.get_template("page.html").render(
        title=title, subtitle=subtitle, facts=facts, sections=sections, colors=COLORS, marks=MARKS
    )
    return page.encode(errors="backslashreplace")  # paths may hold what UTF-8 cannot
