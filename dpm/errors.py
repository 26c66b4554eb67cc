"""`UserError`: the one line that a user sees."""


class UserError(Exception):
    """A mistake that the user can mend. Its one line says what is wrong, where, and how to mend it."""
