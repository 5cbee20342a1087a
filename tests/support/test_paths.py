"""What is no path is refused in a sentence by whatever takes one."""

import pytest
from tiny import make_model

from lasertri import Edit, LasertriError, load_model, load_tokenizer, save
from lasertri.factors.journals import open_journal


@pytest.mark.parametrize("given", [None, 5, True, b"x", ["x"]])
@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (load_model, "a hub id, a folder with a Hugging Face model or a GGUF file"),
        (load_tokenizer, "a hub id, a folder with a Hugging Face model or a GGUF file"),
        (Edit.load, "a folder with a saved edit"),
        (lambda given: save(make_model("gptj"), given), "an output folder"),
        (lambda given: open_journal(given or 0, dict, None, resume=True), "a folder for a journal"),
    ],
    ids=["model", "tokenizer", "edit", "output", "journal"],
)
def test_what_is_no_path(use, expected, given):
    with pytest.raises(LasertriError, match=f"^expected {expected}, got "):
        use(given)
