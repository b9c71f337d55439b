"""The report's figures: the values they are given are what they show."""

import re

import numpy as np
import pytest

from data_pipelines.coco17 import JOINTS
from star_jax.report import figures
from star_jax.report.analysis import Curve, Densities
from star_jax.report.theme import COLORS, render


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_curves_show_the_logged_values():
    steps = np.array([10.0, 20.0, 30.0])
    figure = figures.curves("loss", steps, {"loss": np.array([3.0, 2.0, 1.0])}, unit="loss")
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xydata(), [[10, 3], [20, 2], [30, 1]])
    assert figure.axes[0].get_xlabel() == "step" and figure.axes[0].get_ylabel() == "loss"
    assert figure.axes[0].get_yscale() == "linear"
    wide = figures.curves("loss", steps, {"loss": np.array([3.0, 0.3, 0.02])}, unit="loss")
    assert wide.axes[0].get_yscale() == "log"


def test_many_values_get_a_running_median():
    values = np.ones(90)
    values[45] = 1000.0
    assert (figures.running_median(values) == 1).all()
    assert figures.running_median(np.arange(90.0))[45] == 45


def test_cmc_shows_means_and_bands():
    curve = Curve(np.array([40.0, 60.0]), np.array([30.0, 50.0]), np.array([50.0, 70.0]))
    figure = figures.cmc({"i2v": curve})
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1, 40], [2, 60]])
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert {(1.0, 30.0), (1.0, 50.0), (2.0, 50.0), (2.0, 70.0)} <= corners


def test_both_densities_are_shown():
    edges = np.linspace(0, 2, 5)
    found = Densities(edges, np.array([2.0, 0, 0, 0]), np.array([0, 0.5, 1.5, 0]), 3, 1234)
    (axes,) = figures.densities("visible to infrared", "cosine distance", found).axes
    assert axes.get_xlabel() == "cosine distance"
    different, same = axes.patches
    np.testing.assert_array_equal(different.get_data().values, [0, 0.5, 1.5, 0])
    np.testing.assert_array_equal(same.get_data().values, [2, 0, 0, 0])
    assert same.get_fill() and not different.get_fill()  # not by color alone
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["different identity, 1,234 pairs", "same identity, 3 pairs"]


def test_attention_prints_the_weights():
    weights = np.array([[0.9, 0.1], [0.25, 0.75]])
    frames = np.zeros((2, 16, 12, 3), np.uint8)
    figure = figures.attention("0001", frames, weights, weights.T)
    assert texts(figure) == ["90.0", "10.0", "25.0", "75.0", "90.0", "25.0", "10.0", "75.0"]
    assert len(figure.axes[0].images) == 2


def test_every_joint_of_the_body_is_named_with_its_number():
    labels = [f"{joint}.5" for joint in range(17)]
    values = np.arange(17.0) - 3
    figure = figures.body("title", values, labels, values > 10)
    shown = dict(text.split("\n") for text in texts(figure)[:17])
    expected = zip(JOINTS, labels, strict=True)
    assert shown == {joint.replace("_", " "): label for joint, label in expected}
    bold = [text.get_text() for text in figure.axes[0].texts[:17] if text.get_weight() == "bold"]
    assert sorted(bold) == ["left ankle\n15.5", "right ankle\n16.5", "right knee\n14.5"]
    sizes = [circle.get_sizes()[0] for circle in figure.axes[0].collections]
    assert np.argmax(sizes) == 16 and sizes[2] == sizes[4] and sizes[3] == min(sizes)


def test_left_joints_are_right_of_the_body():
    figure = figures.body("title", np.ones(17), ["1"] * 17, np.zeros(17, bool))
    where = {
        text.get_text().split("\n")[0]: text.get_position()[0] for text in figure.axes[0].texts
    }
    assert where["left knee"] > 0 > where["right knee"]


def test_cameras_show_the_map_of_each_pair():
    pairs = [
        {"query_camera": "1", "gallery_camera": "3", "map": 40.4},
        {"query_camera": "2", "gallery_camera": "4", "map": 99.6},
    ]
    figure = figures.cameras("i2v", pairs, ["1", "2"], ["3", "4"])
    places = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert places == {"40": (0.5, 0.5), "100": (1.5, 1.5)}
    assert len(figure.axes[0].patches) == 2  # the other pairs stay empty


def test_conditions_show_intervals_and_counts():
    scores = {"map": 40.0, "queries": 7, "intervals": {"map": [30.0, 50.0]}}
    figure = figures.conditions({"i2v": {"dark": scores}, "v2i": {}})
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [30.0, 50.0]
    assert texts(figure) == ["40, 7 queries"]


def test_powers_mark_the_median_of_each_modality():
    weights = np.array([[0.1, 0.2, 0.3, 0.2, 0.2], [0.2] * 5, [0.5, 0.1, 0.1, 0.1, 0.2]])
    figure = figures.powers("Mean weight", "weight (%)", weights, np.array([0, 0, 1]))
    medians = [line.get_ydata()[0] for line in figure.axes[0].lines[1:]]
    assert medians == pytest.approx([15, 20, 25, 20, 20, 50, 10, 10, 10, 20])


def figure_of_a_curve():
    return figures.curves("a", np.arange(3.0), {"a": np.array([1.0, 2.0, 3.0])}, unit="b")


def test_ranked_lists_mark_matches_by_more_than_color():
    picture = np.full((20, 10, 3), 90, np.uint8)
    rows = [
        [figures.Captioned(picture, "query: a", "query"), figures.Captioned(picture, "1", "same")],
        [figures.Captioned(picture, "query: b", "query"), figures.Captioned(picture, "1", "other")],
        [figures.Captioned(picture + 9, "query: $c$", "query")],
    ]
    axes = figures.ranked_lists(rows).axes
    assert [own.get_xlabel() for own in axes if own.axison] == [
        *("query: a", "1", "query: b", "1", r"query: \$c\$")
    ]
    styles = [own.spines.left.get_linestyle() for own in axes]
    assert styles[1] != styles[3] and styles[0] == styles[1]
    np.testing.assert_array_equal(axes[4].images[0].get_array(), picture + 9)
    assert not axes[5].axison


def test_the_same_figure_gives_the_same_bytes():
    first, second = (render("a", figure_of_a_curve()) for _ in range(2))
    assert first == second
    assert first.png.startswith(b"\x89PNG")


def test_an_svg_takes_its_colors_from_the_page():
    svg = render("a", figure_of_a_curve()).svg
    assert "var(--ink)" in svg and "var(--visible)" in svg
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#000000"}  # of invisible things
    assert len({color for pair in COLORS.values() for color in pair}) == 2 * len(COLORS)


def test_ids_of_figures_on_one_page_differ():
    identities = [
        set(re.findall(r' id="([^"]+)"', render(name, figure_of_a_curve()).svg)) for name in "ab"
    ]
    assert identities[0] and not identities[0] & identities[1]
