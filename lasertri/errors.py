"""The one exception a user is meant to read."""


class LasertriError(ValueError):
    """A mistake the caller can correct; its message says what was expected, what was given and what to do."""


class NotFiniteError(LasertriError):
    """A model gave NaN or Inf, of which the sample is named."""


class NonFiniteGradientError(NotFiniteError):
    """A gradient has NaN or Inf; whose, its message says, but not of which sample."""


class TooLittleMemoryError(LasertriError):
    """Memory does not hold even the smallest part that the work can be done in."""


class NotConvergedError(LasertriError):
    """An eigensolver or an SVD gave up on a matrix."""
