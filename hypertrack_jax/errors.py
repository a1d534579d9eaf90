"""Both sides: how the library tells a user of a mistake."""

import os
import sys
import warnings

_PACKAGE = os.path.dirname(__file__) + os.sep


class UserError(ValueError):
    """A mistake that the user can correct; its message says what was wrong and what to do."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; the message says which extra brings it."""


def warn_user(message: str) -> None:
    """Warns at the user's line that called into this package, from any depth inside it."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)
