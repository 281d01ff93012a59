"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """Bad input or settings. The message says what is wrong, where, what the rule is and what to do.

    The command line prints it as one line, without a traceback, and exits with code 1.
    """
