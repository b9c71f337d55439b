"""What the documentation refers to exists: links, anchors, documents named in code, pages."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")])
TEXTS = sorted([*ROOT.glob("*.md"), *PAGES])
CODE = sorted(
    path
    for folder in ("star_jax", "data_pipelines", "configs", "launch", "benchmarks", "tests", ".ci")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.suffix in (".py", ".sh", ".yaml", ".json", ".service", "")
)
FENCE = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
DOCUMENT = re.compile(r"(?<![\w/:.*-])[\w./-]*\w\.(?:md|ipynb)\b")


def text_of(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return text


def named(path):
    return str(path.relative_to(ROOT))


def anchors_of(path):
    """Returns the anchors of a page's headings, and of the objects of its API."""
    text = FENCE.sub("", text_of(path))
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\s-]", "", line).strip().lower().replace(" ", "-") for line in headings}
    for module in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE):
        anchors |= {f"{module}.{name}" for name in definitions_of(module)} | {module}
    return anchors


def definitions_of(module):
    base = ROOT / module.replace(".", "/")
    source = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def broken_links(path, text):
    broken = []
    for link in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        if not found.exists() or (anchor and anchor not in anchors_of(found)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_relative_links_resolve(path):
    assert not broken_links(path, text_of(path))


def test_a_broken_link_is_found():
    text = """[a](no.md) [b](config.md#no) [c](#no) [d](api/losses.md#star_jax.losses.no)
[e](config.md) [f](config.md#configoptim) [g](api/losses.md#star_jax.losses.defense) [h](a:b)
```
[i](no.md)
```
"""
    expected = ["no.md", "config.md#no", "#no", "api/losses.md#star_jax.losses.no"]
    assert broken_links(DOCS / "index.md", text) == expected


WRITTEN = ("table.md",)  # by commands


def missing_documents(path, text):
    return [
        name
        for name in DOCUMENT.findall(text)
        if name.rpartition("/")[2] not in WRITTEN
        and not any((folder / name).is_file() for folder in (ROOT, DOCS, path.parent))
    ]


@pytest.mark.parametrize("path", [*CODE, *TEXTS], ids=named)
def test_documents_that_are_named_exist(path):
    if path != Path(__file__):
        assert not missing_documents(path, text_of(path))


def test_a_missing_document_is_found():
    text = '"""See docs/config.md, config.md, docs/no.md, NO.md and https://host/no.md."""'
    assert missing_documents(ROOT / "star_jax/stored.py", text) == ["docs/no.md", "NO.md"]


def test_the_navigation_lists_every_page_once():
    def pages(entries):
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from [value] if isinstance(value, str) else pages(value)

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = sorted(pages(site["nav"]))
    assert listed == sorted(path.relative_to(DOCS).as_posix() for path in PAGES)
