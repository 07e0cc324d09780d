"""The one exception that means: the user asked for something that cannot be."""

__all__ = ["UserError"]


class UserError(Exception):
    """A user's mistake, in one line; the command lines print it and exit with code 2."""
