"""The one exception for mistakes that a user can mend, and the words of its messages."""

from collections.abc import Iterable


class UserError(Exception):
    """Bad input or settings. The message says what is wrong, where, what the rule is and what to do.

    The command line prints it as one line, without a traceback, and exits with code 1.
    """


def few(names: Iterable[str]) -> str:
    """The first three names of a list, and how many there are."""
    every = list(names)
    return ", ".join(every[:3]) + (f", ... ({len(every)} in all)" if len(every) > 3 else "")
