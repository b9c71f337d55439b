"""The report's page: what it shows, escapes and leaves out."""

import html.parser
import re

import numpy as np
import pytest
import tiny

from star_jax.report import figures, sections
from star_jax.report.analysis import Curve, Details
from star_jax.report.page import (
    Card,
    Folded,
    Panels,
    RankedList,
    RankedLists,
    Score,
    Section,
    Table,
    make_page,
)
from star_jax.report.theme import render

HOSTILE = "<script>alert(1)</script>\"' & <img src=x onerror=alert(2)>"


class Tags(html.parser.HTMLParser):
    """Collects the tags of a page and their attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page.decode())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def page_of(*blocks, missing="", title="run"):
    section = Section("a", "A", "Lead.", blocks, missing=missing)
    return make_page(title, "subtitle", {"Step": "3"}, [section])


def test_names_from_data_are_escaped():
    picture = "data:image/jpeg;base64,AAAA"
    card = Card(picture, "query", HOSTILE, HOSTILE, HOSTILE)
    page = page_of(
        RankedLists(HOSTILE, [RankedList(HOSTILE, HOSTILE, [card], picture)]),
        Table([HOSTILE], [[HOSTILE]], HOSTILE),
        Folded(HOSTILE, HOSTILE),
        missing=HOSTILE,
        title=HOSTILE,
    )
    tags = Tags(page)
    assert "script" not in tags.tags and tags.tags.count("img") == 2
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert tags.text.count(HOSTILE) == 14


def test_names_in_figures_are_escaped():
    names = np.array(["</text><script>alert(1)</script>", "$x$", "$\\frac{"])
    drawn = figures.embedding_map(np.eye(3)[:, :2], names, np.array([0, 1, 0]))
    tags = Tags(page_of(Panels([render("map", drawn)], "caption")))
    assert "script" not in tags.tags
    assert "$x$" in tags.text and "$\\frac{" in tags.text


def test_nothing_outside_the_page_is_named():
    curve = Curve(*np.array([[10.0, 20.0], [5.0, 10.0], [20.0, 30.0]]))
    page = page_of(Panels([render("cmc", figures.cmc({"i2v": curve, "v2i": curve}))], "caption"))
    text = page.decode()
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", text)
    links = [
        value for name, value in Tags(page).attributes if name in ("href", "src", "xlink:href")
    ]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    policy = dict(Tags(page).attributes)["content"]
    assert "default-src 'none'" in text and policy


def test_a_table_shows_scores_with_their_intervals():
    text = Tags(page_of(Table(["", "i2v"], [["mAP", Score(43.98, 34.91, 53.2)]], "95 % intervals")))
    assert "44.0" in text.text and "34.9 to 53.2" in text.text
    assert "95\N{NO-BREAK SPACE}% intervals" in text.text


def test_matches_differ_by_more_than_color():
    kinds = ("same", "other", "unknown")
    cards = [Card("data:,", kind, "1: 0.5", "0001", "camera 1") for kind in kinds]
    page = page_of(RankedLists("t", [RankedList("best", "AP", cards)]))
    signs = re.findall(r'<span class="mark" title="([^"]+)">(.)</span>', page.decode())
    assert [sign for _, sign in signs] == ["✓", "✗", "?"]
    assert len({meaning for meaning, _ in signs}) == 3
    styles = re.findall(r"\.card\.(\w+) > :first-child \{ border: 3px (\w+)", page.decode())
    assert styles == [("other", "dashed"), ("unknown", "dotted")]  # others are solid


def test_a_card_without_a_picture_says_so():
    card = Card("", "same", "1: 0.5", "0001", "camera 1")
    tags = Tags(page_of(RankedLists("", [RankedList("0002", "AP", [card])])))
    assert "no picture" in tags.text and "img" not in tags.tags and "h3" not in tags.tags


def test_sections_that_do_not_apply_say_why():
    plain = Details(np.eye(4, dtype=np.float32))

    class Model:
        uses_skeletons = False
        pooling = guidance = None

    assert "not guided" in sections.pooling(plain, None, Model).missing
    assert (
        "no skeletons"
        in sections.attention(plain, None, None, lambda position: None, Model).missing
    )
    assert "no skeletons" in sections.joints("hitsz_vcm/v1", plain, None, 4).missing
    assert "no metrics.jsonl" in sections.training([], None).missing
    scores = {"i2v": {}, "v2i": {}}
    missing = sections.cameras_and_conditions(scores).missing
    assert "no conditions" in missing and "no scores by pair of cameras" in missing
    assert "--corrupt=drop:0.3" in sections.corruption({}, [], "runs/a").missing
    page = make_page("run", "", {}, [sections.joints("hitsz_vcm/v1", plain, None, 4)])
    assert "no skeletons" in Tags(page).text


def report(i2v, v2i, corrupt=None):
    scores = {
        name: {"map": mean, "intervals": {"map": [mean - 5, mean + 5]}}
        for name, mean in (("i2v", i2v), ("v2i", v2i))
    }
    options = {} if corrupt is None else {"corrupt": corrupt}
    return {**scores, "options": options, "protocol": "p", "clips": "first"}


def test_corruptions_are_ordered_by_their_amount():
    others = [report(10, 11, "drop:0.5"), report(30, 31, "drop:0.1"), report(5, 6, "swap_people")]
    others.append(report(90, 91, "swap_people") | {"split": "validation"})  # cannot be compared
    section = sections.corruption(report(50, 51), others, "runs/a")
    panels, table = section.blocks
    assert [figure.name for figure in panels.figures] == ["corruption_drop"]
    assert table.rows == [["swap people", Score(5, 0, 10), Score(6, 1, 11)]]
    figure = figures.corruption("drop", "p", [0.0, 0.1, 0.5], [report(50, 51), *others[1::-1]])
    lines = figure.axes[0].lines
    assert [line.get_xdata().tolist() for line in lines] == [[0.0, 0.1, 0.5]] * 2
    assert sorted(line.get_ydata().tolist() for line in lines) == [[50, 30, 10], [51, 31, 11]]


@pytest.mark.parametrize(("held_out", "split"), [(0, "test"), (3, "validation")])
def test_curves_name_the_split_that_was_evaluated(held_out, split):
    config = tiny.config("data")
    config.data.validation_identities = held_out
    metrics = [{"step": step, "loss/total": 1.0, "i2v/map": 20.0} for step in (1.0, 2.0)]
    (panels,) = sections.training(metrics, config).blocks
    (curve,) = [figure for figure in panels.figures if figure.name == "training_evaluated_map"]
    assert f"mAP, {split} split" in curve.svg


def test_curves_of_the_moving_average_are_beside_those_of_the_weights():
    scores = {"i2v/map": 20.0, "v2i/map": 30.0, "ema/i2v/map": 40.0, "ema/v2i/map": 50.0}
    metrics = [{"step": step, "loss/total": 1.0, **scores} for step in (1.0, 2.0)]
    (panels,) = sections.training(metrics, tiny.config("data")).blocks
    curves = {figure.name: figure.svg for figure in panels.figures[1:]}
    assert list(curves) == ["training_evaluated_map", "training_evaluated_ema_map"]
    assert "mAP of the average, test split" in curves["training_evaluated_ema_map"]
