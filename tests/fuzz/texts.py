"""Texts of all kinds, and values that are none."""

from __future__ import annotations

import string
from random import Random

PIECES = (
    *"abcdez", "yes", "no", "the", "inter", "international", "view", "well-known", "U.S.", "£4.56", "3.5%", "O'Brien",
    "☃", "ﬁ", "e\u0301", "👩\u200d👧", "日本", "\x00", "\u200b", "\ufeff", "\u2028", "\x85", "<unk>", "</s>", "[CLS]",
    "[SEP]", "{a}", "{{", "}", "\\n", '"', "'", "(", "[", "“", "„", "`", ",", ";", "\t", "\r", "0", "1", "-1", "nan",
)  # fmt: skip
DEEP = ()  # stands for lists in lists, too deep to be made here
JUNK = (
    DEEP,
    None, True, False, 0, 1, 3, -1, 2.5, float("nan"), float("inf"), 10**5000, "", "  ", "\ud83d", "a\udc00b",
    "7" * 5000,
    [], {}, ["yes"], ["yes", None], ["yes", 3], ["yes", "yes"], ["Yes", "yes"], {"a": 1}, [["yes"], ["no"]], "[" * 9999,
    '["yes", "no"]', '{"a": 1}', "yes",
)  # fmt: skip


def text(random: Random, most: int = 6) -> str:
    """A few pieces, with white space between, around, or without."""
    pieces = random.choices((*PIECES, *string.ascii_lowercase), k=random.randint(1, most))
    before, after = (random.choice(("", "", " ", "\n")) for _ in range(2))
    return before + random.choice(("", " ", " ")).join(pieces) + after
