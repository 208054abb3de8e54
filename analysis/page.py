"""A page of headings, paragraphs, tables and figures, and its two forms: HTML in one file, and Markdown."""

import base64
import html
import re
from collections.abc import Sequence
from typing import NamedTuple


class Heading(NamedTuple):
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


class Text(NamedTuple):
    """A paragraph; `code` in backticks and **strong** are understood."""

    text: str


class Table(NamedTuple):
    """A table; columns whose cells start with a digit or sign are set to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A figure with its caption; `name` is that of its files, without an ending."""

    name: str
    svg: bytes
    alt: str
    caption: str


class Code(NamedTuple):
    """Lines to copy."""

    lines: Sequence[str]


Element = Heading | Text | Table | Picture | Code

_CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --muted: #59636e; --line: #d0d7de; --back: #ffffff; --soft: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --muted: #9198a1; --line: #3d444d; --back: #0d1117; --soft: #151b23; }
}
body { margin: 0 auto; max-width: 1040px; padding: 2rem 1.25rem 4rem; color: var(--ink); background: var(--back);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
p { max-width: 46rem; }
figure { margin: 1.5rem 0; }
figure img { width: 100%; background: #ffffff; border-radius: 6px; padding: 10px; box-sizing: border-box; }
figcaption { color: var(--muted); font-size: .87rem; max-width: 52rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 600; }
td.number, th.number { text-align: right; }
td:last-child { white-space: normal; }
code, pre { font: .85em/1.5 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--soft); border-radius: 4px; }
code { padding: .1em .3em; }
pre { padding: .8rem; overflow-x: auto; }
"""


def to_html(title: str, elements: Sequence[Element]) -> str:
    """Return the page as one HTML file that needs nothing else."""
    body = "\n".join(_html(element) for element in elements)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def to_markdown(elements: Sequence[Element]) -> str:
    """Return the page as Markdown; its figures are files beside it."""
    return "\n\n".join(_markdown(element) for element in elements) + "\n"


def _html(element: Element) -> str:
    match element:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Code(lines):
            return f"<pre>{html.escape(chr(10).join(lines))}</pre>"
        case Picture(_, svg, alt, caption):
            data = base64.b64encode(svg).decode()
            image = f'<img src="data:image/svg+xml;base64,{data}" alt="{html.escape(alt)}">'
            return f"<figure>{image}<figcaption>{_inline(caption)}</figcaption></figure>"
        case Table(header, rows):
            numeric = _numeric(element)
            head = "".join(_cell("th", cell, right) for cell, right in zip(header, numeric, strict=True))
            body = "\n".join(
                "<tr>" + "".join(_cell("td", cell, right) for cell, right in zip(row, numeric, strict=True)) + "</tr>"
                for row in rows
            )
            table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
            return f'<div class="scroll">{table}</div>'


def _markdown(element: Element) -> str:
    match element:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Code(lines):
            return "\n".join(("```sh", *lines, "```"))
        case Picture(name, _, alt, caption):
            return f"![{alt}]({name}.png)\n\n*{caption}*"
        case Table(header, rows):
            rule = ["---:" if right else "---" for right in _numeric(element)]
            lines = [header, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _numeric(table: Table) -> list[bool]:
    """Return which columns hold numbers: any, and nothing but numbers, the marks of footnotes, and blanks."""
    columns = [[row[place] for row in table.rows if row[place]] for place in range(len(table.header))]
    pattern = re.compile(r"[-\N{MINUS SIGN}]?\d[\d.,]*( [%kM]| \[.*\])?( \(\d+\))*|no gap|\N{EN DASH}")
    return [bool(cells) and all(pattern.fullmatch(cell) for cell in cells) for cells in columns]


def _cell(tag: str, text: str, right: bool) -> str:
    kind = ' class="number"' if right else ""
    return f"<{tag}{kind}>{_inline(text)}</{tag}>"


def _inline(text: str) -> str:
    """Return `text` as HTML.

    >>> _inline("`a<b` is **so**")
    '<code>a&lt;b</code> is <strong>so</strong>'
    """
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", escaped)
