"""Files and folders that appear whole or not at all."""

import csv
import json
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Context: a scratch folder that becomes ``folder`` if all went well, and is removed otherwise."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield scratch
        scratch.chmod(0o755)  # a temporary folder is its owner's alone
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """Context: a scratch name beside ``path``, whose file takes the place of ``path`` if all went well.

    Args:
        path: To be written.
        shared: Whether others may write it at the same time. What a killed process leaves then stays; otherwise the
            next one writes over it.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4) if shared else 'part'}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def numbered(path: Path) -> Iterator[Path]:
    """``config.yaml``, ``config-2.yaml`` and so on."""
    yield path
    for number in count(2):
        yield path.with_stem(f"{path.stem}-{number}")


def unused(path: Path) -> Path:
    """The first of :func:`numbered` that does not exist."""
    return next(name for name in numbered(path) if not name.exists())


def write_text(text: str, path: Path) -> None:
    """Write text in UTF-8."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(content: Any, path: Path) -> None:
    """Write plain values."""
    write_text(json.dumps(content, indent=1) + "\n", path)


def write_csv(lines: Iterable[Sequence[Any]], path: Path, shared: bool = False) -> None:
    """Write a table, its header first; ``shared`` as of :func:`replacing`."""
    with replacing(path, shared) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
