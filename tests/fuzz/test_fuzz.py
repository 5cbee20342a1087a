"""The first generated cases of every kind; `python -m tests.fuzz` runs as many as are wanted."""

import pytest

from fuzz.run import KINDS, run

CASES = {"rows": 100, "options": 60, "edits": 40, "checkpoints": 20}


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_case_is_read_right_or_refused_in_a_sentence(kind):
    told = []
    assert run(kind, range(CASES[kind]), tell=told.append) == 0, "\n".join(told)
