"""The looks of the report's figures: colors, fonts, and their form in a page and as a PNG file.

A figure is drawn in the colors of a light page. In its SVG these become the page's variables
(`var(--ink)`), which have other values in the dark. Shades are one color at several opacities, so
that they fit both. One unit of a figure is one pixel of the page.
"""

import io
import re
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

# Colors on a light and on a dark page. The hues are those of Okabe and Ito, which people of all
# kinds of color vision tell apart.
COLORS = {
    "ink": ("#1b1f24", "#e4e7eb"),
    "muted": ("#5c6670", "#9ba5b0"),
    "rule": ("#d5dade", "#3a424b"),
    "visible": ("#0068a5", "#5cb6ec"),
    "infrared": ("#bf4a00", "#f0944d"),
    "identity-1": ("#0072b2", "#56b4e9"),
    "identity-2": ("#d55e00", "#e8702a"),
    "identity-3": ("#00896a", "#1fc49b"),
    "identity-4": ("#a8689c", "#d596c5"),
    "identity-5": ("#b07d00", "#e69f00"),
    "identity-6": ("#3d9bd4", "#9fd3f2"),
    "identity-7": ("#57606a", "#b6bec8"),
    "identity-8": ("#8c8200", "#e8dc3c"),
}
INK, MUTED, RULE, VISIBLE, INFRARED = (light for light, _ in list(COLORS.values())[:5])
FONT = 11.0
SETTINGS: dict[Any, Any] = {  # keys are a literal type in matplotlib's own annotations
    "svg.fonttype": "none",
    "image.composite_image": False,
    "font.family": ["DejaVu Sans"],
    "font.size": FONT,
    "axes.titlesize": FONT + 1,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": FONT,
    "axes.edgecolor": RULE,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "lines.linewidth": 2,
}


class Rendered(NamedTuple):
    """A figure in both of its forms.

    Attributes:
      name: of the PNG file, without its ending.
      width: on the page, pixels.
      svg: an element for the page.
      png: content of the PNG file.
    """

    name: str
    width: int
    svg: str
    png: bytes


def render(name: str, figure: Figure) -> Rendered:
    """Returns a figure in both forms; the same figure gives the same bytes.

    Args:
      name: of the figure; identifiers within the SVG depend on it, so that those of several
        figures of a page differ.
      figure: drawn in the light ones of COLORS.
    """
    vector, pixels = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure.savefig(
            vector, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
        figure.savefig(pixels, format="png", dpi=144, facecolor="white")
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    svg = _for_page(name, vector.getvalue().decode(), width, height)
    return Rendered(name, width, svg, pixels.getvalue())


def _for_page(name: str, svg: str, width: int, height: int) -> str:
    """Returns what a page needs of an SVG file, with its variables as colors.

    A figure becomes a fifth smaller where the window is narrow, and then scrolls.
    """
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(
        r"<svg[^>]*>",
        f'<svg class="figure" role="img" viewBox="0 0 {width} {height}" '
        f'style="min-width: {round(0.8 * width)}px">',
        svg,
        count=1,
    )
    # By order: matplotlib's identifiers depend on the last bits of a layout, which may vary.
    ids: dict[str, str] = {}
    for used in re.findall(r'(?:url\(|href=")#([\w-]+)', svg):
        ids.setdefault(used, f"{name}-{len(ids)}")
    svg = re.sub(r' id="([^"]*)"', lambda id: f' id="{ids[id[1]]}"' if id[1] in ids else "", svg)
    svg = re.sub(r'(url\(|href=")#([\w-]+)', lambda link: f"{link[1]}#{ids[link[2]]}", svg)
    for variable, (light, _) in COLORS.items():
        svg = svg.replace(light, f"var(--{variable})")
    return re.sub(r"\n\s*", "\n", svg).strip()
