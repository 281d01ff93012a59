"""Where commands write to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rare_lightning.errors import UserError


@contextmanager
def output_folder(output: str) -> Iterator[Path]:
    """Context: the folder that ``--output`` names, which may not exist yet.

    Raises:
        UserError: If something in it cannot be written.
    """
    folder = Path(output).expanduser()
    try:
        yield folder
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror})") from error
