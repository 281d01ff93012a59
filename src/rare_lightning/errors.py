"""The one exception for mistakes that a user can mend, and the words of its messages."""

import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(Exception):
    """Bad input or settings. The message says what is wrong, where, what the rule is and what to do.

    The command line prints it as one line, without a traceback, and exits with code 1.
    """


def require(extra: str, *names: str) -> list[ModuleType]:
    """Modules that an extra of the package brings.

    Raises:
        UserError: If one is not installed; it names the command that installs it.
    """
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise UserError(f'{error.name} is not installed: pip install "rare-lightning[{extra}]"') from error


def few(names: Iterable[str]) -> str:
    """The first three names of a list, and how many there are."""
    every = list(names)
    return ", ".join(every[:3]) + (f", ... ({len(every)} in all)" if len(every) > 3 else "")
