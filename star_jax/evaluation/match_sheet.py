"""Contact sheets of search results, as a PNG file and as a web page.

Names of identities and files are untrusted: the page escapes them and may not load anything.
"""

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import simplejpeg
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.errors import InputError, UserError
from data_pipelines.io import remote
from data_pipelines.io.progress import with_progress
from data_pipelines.io.terminal import printable
from data_pipelines.records.reading import fingerprint, open_records
from star_jax.evaluation.embeddings import Embeddings
from star_jax.evaluation.search import Match, Result, facts_of

Thumbnails = Callable[[int], Image.Image | None]

THUMBNAIL = (112, 192)  # width and height of the box that a picture is fitted to
_BORDER = 5
_CELL = (THUMBNAIL[0] + 2 * _BORDER + 14, THUMBNAIL[1] + 2 * _BORDER + 82)
_MARGIN = 20
_QUERY_GAP = 26
_LINE = 16
_PNG_ROWS = 50
_COLORS = {True: "#1a8f3c", False: "#c62828", None: "#9aa0a6"}
_LEGEND = (
    ("the query's identity", _COLORS[True]),
    ("another identity", _COLORS[False]),
    ("unknown", _COLORS[None]),
)
_STYLE = """
body { font: 13px/1.35 system-ui, sans-serif; margin: 20px; color: #202124; background: #fff; }
.row { display: flex; gap: 10px; padding: 14px 0; border-top: 1px solid #dadce0; overflow-x: auto; }
figure { margin: 0; width: 130px; flex: none; }
figure.query { margin-right: 16px; }
.picture { height: 192px; border: 5px solid; background: #eceff1; display: flex;
  align-items: center; justify-content: center; color: #5f6368; }
.picture img { max-width: 100%; max-height: 100%; }
figcaption { overflow-wrap: anywhere; margin-top: 4px; }
figcaption b { display: block; }
figcaption small { color: #5f6368; }
.legend span { border-left: 14px solid; padding-left: 6px; margin-right: 18px; }
"""


def thumbnails(embeddings: Embeddings, warn: Callable[[str], None]) -> Thumbnails:
    """Returns a function from a tracklet's position to its middle frame, as a thumbnail.

    If the packed dataset is missing or has changed, `warn` is called with the reason, and the
    function returns None. A dataset at an address is never accessed, since embeddings may come from
    an untrusted source.
    """
    dataset_dir = embeddings.dataset_dir
    try:
        if remote.is_remote(dataset_dir):
            raise InputError(
                f"{dataset_dir}: an address in embeddings is not followed; embed a local copy "
                "of the dataset"
            )
        if fingerprint(dataset_dir) != embeddings.dataset_fingerprint:
            raise InputError(f"{dataset_dir}: not the dataset that was embedded")
        records = open_records(dataset_dir, embeddings.split)
        if len(records) != len(embeddings.rows):
            raise InputError(f"{dataset_dir}: not the split that was embedded")
    except FileNotFoundError:
        warn(
            f"no pictures: {printable(dataset_dir)} is not a packed dataset; to see pictures, pack "
            "the footage with launch/prepare.py and embed it with launch/embed.py"
        )
        return lambda position: None
    except (OSError, UserError) as error:
        warn(f"no pictures: {printable(str(error))}")
        return lambda position: None

    def thumbnail(position: int) -> Image.Image:
        frames = records[position]["frames"]
        picture = Image.fromarray(simplejpeg.decode_jpeg(frames[len(frames) // 2]))
        scale = min(box / side for box, side in zip(THUMBNAIL, picture.size, strict=True))
        size = [max(1, round(side * scale)) for side in picture.size]
        return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)

    return thumbnail


def matches_png(
    query: Embeddings,
    gallery: Embeddings,
    results: Sequence[Result],
    pictures: tuple[Thumbnails, Thumbnails],
) -> bytes:
    """Draws the contact sheet, one row per query: the query, then its matches by rank.

    Only the first 50 queries are drawn; many programs cannot show larger pictures.

    Args:
      query: embeddings of the queries.
      gallery: embeddings of the gallery.
      results: as returned by `search.search`.
      pictures: `thumbnails` of queries and gallery.

    Returns:
      The content of a PNG file.
    """
    results = results[:_PNG_ROWS]
    columns = max(len(result.matches) for result in results)
    legend_width = 520
    width = max(_CELL[0] * (1 + columns) + _QUERY_GAP, legend_width) + 2 * _MARGIN
    top = 2 * _MARGIN + _LINE
    sheet = Image.new("RGB", (width, top + _CELL[1] * len(results) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    _draw_legend(draw)
    for row, result in enumerate(results):
        y = top + row * _CELL[1]
        draw.line((_MARGIN, y - 8, width - _MARGIN, y - 8), fill="#dadce0")
        lines = ("query", *_captions(query, result.query))
        _draw_cell(sheet, draw, (_MARGIN, y), pictures[0](result.query), lines, "#202124")
        for place, match in enumerate(result.matches):
            x = _MARGIN + _QUERY_GAP + _CELL[0] * (1 + place)
            lines = (_rank(place, match), *_captions(gallery, match.position))
            picture = pictures[1](match.position)
            _draw_cell(sheet, draw, (x, y), picture, lines, _COLORS[match.same])
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def matches_html(
    query: Embeddings,
    gallery: Embeddings,
    results: Sequence[Result],
    pictures: tuple[Thumbnails, Thumbnails],
) -> bytes:
    """Returns the contact sheet as a self-contained web page; see `matches_png`."""
    rows = []
    for result in with_progress(results, len(results), "drawing", "queries"):
        figures = [
            _figure(
                pictures[0](result.query), ("query", *_captions(query, result.query)), "#202124"
            )
        ]
        for place, match in enumerate(result.matches):
            lines = (_rank(place, match), *_captions(gallery, match.position))
            figures.append(_figure(pictures[1](match.position), lines, _COLORS[match.same]))
        figures[0] = figures[0].replace("<figure>", '<figure class="query">', 1)
        rows.append(f'<div class="row">{"".join(figures)}</div>')
    legend = "".join(f'<span style="border-color:{color}">{text}</span>' for text, color in _LEGEND)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Matches</title>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<style>{_STYLE}</style></head>
<body><p class="legend">{legend}</p>
{chr(10).join(rows)}
</body></html>
"""
    return page.encode()


def _rank(place: int, match: Match) -> str:
    return f"{place + 1}:  {match.score:.3f}"


def _captions(embeddings: Embeddings, position: int) -> tuple[str, str, str]:
    identity, camera, modality, frame = map(printable, facts_of(embeddings, position))
    return identity, f"{modality}, camera {camera}", frame


def _figure(picture: Image.Image | None, lines: Sequence[str], color: str) -> str:
    image = "no picture"
    if picture is not None:
        jpeg = simplejpeg.encode_jpeg(np.asarray(picture), 90, "RGB")
        image = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
    title, identity, where, frame = map(html.escape, lines)
    return (
        f'<figure><div class="picture" style="border-color:{color}">{image}</div>'
        f"<figcaption>{title}<b>{identity}</b>{where}<br><small>{frame}</small></figcaption>"
        "</figure>"
    )


def _draw_legend(draw: ImageDraw.ImageDraw) -> None:
    x = _MARGIN
    for text, color in _LEGEND:
        draw.rectangle((x, _MARGIN + 1, x + 12, _MARGIN + 13), fill=color)
        draw.text((x + 19, _MARGIN), text, "#202124", font=_font(12))
        x += 19 + round(draw.textlength(text, _font(12))) + 24


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    picture: Image.Image | None,
    lines: Sequence[str],
    color: str,
) -> None:
    x, y = corner
    right, bottom = (x + THUMBNAIL[0] + 2 * _BORDER, y + THUMBNAIL[1] + 2 * _BORDER)
    draw.rectangle((x, y, right - 1, bottom - 1), fill="#eceff1", outline=color, width=_BORDER)
    if picture is None:
        draw.text(((x + right) / 2, (y + bottom) / 2), "no picture", "#5f6368", _font(12), "mm")
    else:
        left = x + _BORDER + (THUMBNAIL[0] - picture.width) // 2
        sheet.paste(picture, (left, y + _BORDER + (THUMBNAIL[1] - picture.height) // 2))
    title, identity, where, frame = lines
    styles = ((title, 12, False), (identity, 12, True), (where, 11, False), (frame, 10, False))
    for number, (text, size, bold) in enumerate(styles):
        font = _font(size, bold)
        shown = _fit(draw, text, font, _CELL[0] - 6, keep_end=number == 3)
        ink = "#5f6368" if number == 3 else "#202124"
        draw.text((x, bottom + 3 + number * _LINE), shown, ink, font)


def _fit(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int, keep_end: bool
) -> str:
    """Truncates a text to a width, at the start if `keep_end`, as for paths."""
    shown = text
    while draw.textlength(shown, font) > width and text:
        text = text[1:] if keep_end else text[:-1]
        shown = f"…{text}" if keep_end else f"{text}…"
    return shown


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)
