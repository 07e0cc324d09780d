"""The one exception that means: the user asked for something that cannot be."""

__all__ = ["UserError"]


class UserError(Exception):
    """A mistake of the user's, told in one line; the command lines print it and leave with exit code 2."""
