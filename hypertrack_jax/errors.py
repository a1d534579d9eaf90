"""Both sides: the error of a user's mistake."""


class UserError(ValueError):
    """A mistake that the user can mend; its message says what was wrong and what to do."""
