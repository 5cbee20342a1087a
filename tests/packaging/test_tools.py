"""What checks a change is of one version, whoever runs it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_pre_commit_runs_the_ruff_of_the_constraints():
    hooks, constraints = ((ROOT / name).read_text() for name in (".pre-commit-config.yaml", "constraints.txt"))
    [pinned] = re.findall(r"ruff-pre-commit\n\s+rev: v(\S+)", hooks)
    assert f"\nruff=={pinned}\n" in constraints
