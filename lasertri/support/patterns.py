"""Regular expressions that a user gives."""

from __future__ import annotations

import re

from lasertri.errors import LasertriError
from lasertri.support.shown import reason, shown


def target_pattern(given: object) -> re.Pattern[str]:
    """What is searched for in the names of targets.

    Raises:
        LasertriError: it is no regular expression.
    """
    try:
        if isinstance(given, str):
            return re.compile(given)
        problem = f"a {type(given).__name__}"
    except (re.error, OverflowError, RecursionError) as error:
        problem = reason(error)
    raise LasertriError(f"expected a regular expression for the targets, got {shown(given)}: {problem}")
