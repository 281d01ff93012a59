"""Files and folders that appear whole or not at all."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
