"""A page of headings, text, tables and pictures, written as Markdown and as one HTML file that needs nothing else."""

import html
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rare_lightning.evaluation.tables import markdown_table


@dataclass(frozen=True)
class Heading:
    """A heading of a depth from 1 on."""

    text: str
    depth: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Text, in which ``**bold**`` and `` `code` `` mean what they do in Markdown."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows with the same keys, which are the heading; cells as in a :class:`Paragraph`."""

    rows: Sequence[dict[str, str]]


@dataclass(frozen=True)
class Picture:
    """A picture beside the page, ``NAME.png`` or ``NAME.svg``, and what it shows."""

    file: str
    caption: str


Block = Heading | Paragraph | Table | Picture
TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .6rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .25rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid #222; }
tbody td { border-bottom: 1px solid #ddd; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .88rem; }
code { background: #f2f2f2; padding: 0 .2em; }
"""


def to_markdown(blocks: Sequence[Block]) -> str:
    """The page as Markdown; pictures are links to the files beside it."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, depth):
                parts.append(f"{'#' * depth} {text}")
            case Paragraph(text):
                parts.append(text)
            case Table(rows):
                parts.append(markdown_table([{_cell(k): _cell(v) for k, v in row.items()} for row in rows]))
            case Picture(file, caption):
                parts.append(f"![{caption}]({file})")
    return "\n\n".join(parts) + "\n"


def to_html(blocks: Sequence[Block], folder: Path) -> str:
    """The page as one HTML file that holds the pictures found in the folder.

    Raises:
        OSError: If one is missing.
    """
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    body = "\n".join(_element(block, folder) for block in blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _element(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, depth):
            return f"<h{depth}>{_inline(text)}</h{depth}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Table(rows):
            head = "".join(f"<th>{_inline(name)}</th>" for name in rows[0])
            body = "\n".join(f"<tr>{''.join(f'<td>{_inline(v)}</td>' for v in row.values())}</tr>" for row in rows)
            table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
            return f'<div class="table">{table}</div>'
        case Picture(file, caption):
            data = b64encode((folder / file).read_bytes()).decode("ascii")
            source = f"data:{TYPES[Path(file).suffix]};base64,{data}"
            text = html.escape(caption)
            return f'<figure><img src="{source}" alt="{text}">\n<figcaption>{text}</figcaption></figure>'


def _cell(text: str) -> str:
    """A bar would begin the next cell."""
    return text.replace("|", r"\|")


def _inline(text: str) -> str:
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escaped)
