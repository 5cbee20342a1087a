"""The one exception a user is meant to read."""


class LasertriError(ValueError):
    """A mistake the caller can correct; its message says what was expected, what was given and what to do."""
