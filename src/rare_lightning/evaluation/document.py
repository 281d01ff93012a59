"""A page in Markdown, and the same as one HTML file that needs nothing else."""

import html
import re
from base64 import b64encode
from pathlib import Path

from markdown_it import MarkdownIt

TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
PICTURE = re.compile(r'<p><img src="([^"]+)" alt="([^"]*)" /></p>')
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .6rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; white-space: nowrap; }
table { font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: left; }
th:first-child, td:first-child { padding-left: 0; }
thead th { border-bottom: 2px solid #222; }
tbody td { border-bottom: 1px solid #ddd; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .88rem; }
code { background: #f2f2f2; padding: 0 .2em; }
"""


def picture(file: str, caption: str) -> str:
    """Markdown of a picture beside the page, ``NAME.png`` or ``NAME.svg``, with what it shows."""
    return f"![{caption}]({file})"


def to_html(markdown: str, folder: Path) -> str:
    """The page as one HTML file that holds the pictures found in the folder.

    Args:
        markdown: The page, which begins with its title.
        folder: Of its pictures.

    Raises:
        OSError: If one is missing.
    """
    title = markdown.partition("\n")[0].lstrip("# ")
    # Names of methods and cases are not to be taken for HTML.
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = PICTURE.sub(lambda found: _figure(folder / found[1], found[2]), body)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _figure(file: Path, caption: str) -> str:
    data = b64encode(file.read_bytes()).decode("ascii")
    source = f"data:{TYPES[file.suffix]};base64,{data}"
    return f'<figure><img src="{source}" alt="{caption}">\n<figcaption>{caption}</figcaption></figure>'
