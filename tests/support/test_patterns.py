"""A regular expression is one, or it is said why not."""

import pytest

from lasertri import LasertriError
from lasertri.support.patterns import target_pattern


def test_one_is_taken():
    assert target_pattern(r"h\.0\.mlp").search("transformer.h.0.mlp.fc_in")


@pytest.mark.parametrize(
    "given", ["(", "a{99999999999999999999}", "(" * 99999, 5, None, ["a"], True], ids=lambda g: str(g)[:20]
)
def test_others_are_refused(given):
    with pytest.raises(LasertriError, match="expected a regular expression for the targets, got .*: .*") as refused:
        target_pattern(given)
    assert len(str(refused.value)) < 500
