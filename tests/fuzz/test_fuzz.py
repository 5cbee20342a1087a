"""The first generated cases; `python -m tests.fuzz` runs as many as are wanted."""

import pytest

from fuzz.run import run

CASES = {"rows": 80, "options": 80, "edits": 60, "checkpoints": 20, "ops": 300, "cache": 60}


@pytest.mark.parametrize("kind", CASES)
def test_a_generated_case_is_read_right_or_refused_in_a_sentence(kind):
    told = []
    assert run(kind, range(CASES[kind]), tell=told.append) == 0, "\n".join(told)
