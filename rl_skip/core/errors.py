"""The exception for a user's mistakes."""

__all__ = ["UserError"]


class UserError(Exception):
    """A user's mistake, in one line; the command lines print it and exit with its code."""

    exit_code = 2
