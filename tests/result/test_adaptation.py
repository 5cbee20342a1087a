"""What was found is not lost where it cannot be saved, and never saved over what it was made of."""

import re
import resource
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from stand_in_hub import stand_in_hub
from tiny import make_samples

from lasertri import Edit, LasertriError, adapt, load_model, save
from lasertri.result.adaptation import SUMMARY_NAME

KINDS = {
    "truncate": {"blocks": (1,), "ratios": (0.5,), "count": 1, "targets": r"h\.1\.mlp\.fc_in"},
    "step": {"targets": r"h\.1\.mlp"},
    "shrink": {"targets": r"h\.1\.mlp"},
}


@pytest.fixture(params=KINDS)
def found(request, model, tokenizer):
    kind = {"edit": request.param, "accept": "best", "progress": False, "seed": 1} | KINDS[request.param]
    result = adapt(model, make_samples(48), tokenizer=tokenizer, **kind)
    assert result.edit is not None
    return result


def test_it_shows_itself_in_a_line_and_in_a_notebook_whole(found):
    assert re.fullmatch(r"<Adaptation: \S.*; held-out difference [+-]\S+ points \[.*\]: \w+>", repr(found))
    assert len(repr(found)) < 200
    assert found._repr_html_().startswith("<pre>")
    assert "held-out" in found._repr_html_()
    assert "<Adaptation" not in found._repr_html_()


@contextmanager
def largest_file(size):
    """Within, writing more to a file fails, whichever library does it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def kept(message):
    assert "\n" not in message
    return Path(re.search(r"what was found is kept in (.*)$", message)[1])


def same(one, other, model):
    """Whether two edits give a model the same weights."""
    weights = []
    for edit in (one, other):
        with edit.applied(model):
            weights.append(model(torch.arange(12).reshape(2, 6)).logits)
    return torch.equal(*weights)


@torch.no_grad()
def test_an_edit_survives_a_full_disk_and_a_failed_check(found, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patched, pytest.raises(LasertriError, match="writing failed: ") as caught:
        patched.setattr("lasertri.result.adaptation.report_obstacle", full)
        found.save(tmp_path / "out")
    again = Edit.load(kept(str(caught.value)))
    assert same(again, found.edit, found.model)
    assert (kept(str(caught.value)) / SUMMARY_NAME).exists()
    with monkeypatch.context() as patched, pytest.raises(LasertriError, match="expected another answer") as caught:
        for name in ("require_same_answers", "Step.check"):
            patched.setattr(f"lasertri.{'edit.step' if '.' in name else 'result.adaptation'}.{name}", wrong)
        found.save(tmp_path / "out")
    assert same(Edit.load(kept(str(caught.value))), found.edit, found.model)
    assert not list((tmp_path / "out").iterdir())


def full():
    raise OSError(28, "No space left on device")


def wrong(*_):
    raise LasertriError("expected another answer")


@pytest.mark.parametrize(
    ("kind", "limit", "rescued"), [("truncate", 8_000, True), ("truncate", 9, False), ("step", 9, False)]
)
def test_whichever_library_finds_the_disk_full(model, tokenizer, tmp_path, kind, limit, rescued):
    """At the weights, where there is room for the edit; at the configuration; at the tokenizer."""
    options = {"edit": kind, "accept": "best", "progress": False, "seed": 1} | KINDS[kind]
    found = adapt(model, make_samples(48), tokenizer=tokenizer, **options)
    with largest_file(limit), pytest.raises(LasertriError, match=r"writing failed: .*File too large") as caught:
        found.save(tmp_path / "out")
    assert ("what was found is kept in" in str(caught.value)) == rescued
    assert len(list(tmp_path.iterdir())) == rescued


def test_a_model_is_not_replaced_by_what_is_made_of_it(model, tokenizer, tmp_path):
    save(model, tmp_path / "out", tokenizer=tokenizer)
    loaded = load_model(tmp_path / "out")
    found = adapt(loaded, make_samples(48), tokenizer=tokenizer, progress=False, **KINDS["truncate"])
    for attempt in (found.save, partial(save, loaded)):
        for place in (tmp_path / "out", tmp_path):
            with pytest.raises(LasertriError, match=r"out is read from there; choose another"):
                attempt(place, overwrite=True)
    save(loaded, tmp_path / "again")
    save(loaded, tmp_path / "again", overwrite=True)


def test_it_is_pushed_as_it_is_saved(model, tokenizer, tmp_path, monkeypatch):
    found = adapt(model, make_samples(48), tokenizer=tokenizer, accept="best", progress=False, **KINDS["step"])
    with stand_in_hub(monkeypatch) as hub:
        assert found.push_to_hub("me/edited").endswith("/me/edited")
        found.save(tmp_path / "out")
        assert {path.name for path in (tmp_path / "out").iterdir()} - hub.files.keys() == {
            "adaptation.json",
            "report.html",
        }
        assert b'PeftModel.from_pretrained(base, "me/edited")' in hub.files["README.md"]
        hub.files, hub.fails = None, True
        with pytest.raises(LasertriError, match="the push to me/edited failed: .*; call push_to_hub again"):
            found.push_to_hub("me/edited")
    none = adapt(model, make_samples(48), tokenizer=tokenizer, progress=False, **KINDS["truncate"])
    with pytest.raises(LasertriError, match="expected an accepted edit to push"):
        none.push_to_hub("me/edited")
