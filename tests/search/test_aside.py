"""What edits do beside the task, and whether that is allowed."""

import pytest
from faults import out_of_memory
from tiny import make_model, make_samples, make_tokenizer

from lasertri import LasertriError, adapt
from lasertri.edit.edit import all_applied
from lasertri.language.text import EncodedText
from lasertri.measure.side_effects import side_effects
from lasertri.result.adaptation import REPORT_NAME

TEXT = " ".join(["yes no a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 20)
OPTIONS = {"accept": "best", "progress": False}
KINDS = {
    "step": {"direction": "plain"},
    "shrink": {"edit": "shrink"},
    "truncate": {"blocks": 1, "ratios": (0.5, 0.0), "count": 2},
}


@pytest.fixture
def english(monkeypatch):
    """The tiny models' words as neutral text; of the real one they know next to nothing."""
    monkeypatch.setattr("lasertri.search.problem.neutral_text", lambda: TEXT)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_edit_has_its_side_effects_measured(kind, english, tmp_path):
    model, tokenizer = make_model("gptj"), make_tokenizer()
    result = adapt(model, make_samples(60), tokenizer=tokenizer, max_kl=100, **OPTIONS, **KINDS[kind])
    text = EncodedText(TEXT, model=model, tokenizer=tokenizer)
    before = text.read(model)
    with all_applied(result.edits, model):
        expected = side_effects(before, text.read(model))
    described = result.to_dict()
    assert described["side_effects"] == expected.to_dict()
    assert expected.kl > 0
    said = f"on {expected.tokens} tokens of neutral text: mean KL {expected.kl:.4g} nats, perplexity "
    assert said in str(result)
    result.save(tmp_path / "out")
    assert said[1:] in (tmp_path / "out" / REPORT_NAME).read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_beyond_the_limit_is_refused(kind, english):
    options = OPTIONS | KINDS[kind]
    found, tokenizer = make_model("gptj"), make_tokenizer()
    kl = adapt(found, make_samples(60), tokenizer=tokenizer, **options).to_dict()["side_effects"]["kl"]
    refused = adapt(found, make_samples(60), tokenizer=tokenizer, max_kl=0.99 * kl, **options).to_dict()
    assert refused["edit"] is None
    assert refused["rejected"]["kind"] == kind
    assert refused["reason"] == (
        f"on neutral text its predictions move by a mean KL of {kl:.3g} nats, above {0.99 * kl:g}"
    )
    assert refused["side_effects"]["kl"] == pytest.approx(kl)
    assert refused["held_out"]["edited"] is None


def test_a_further_edit_counts_with_those_before_it_and_is_refused_alone(english):
    model, tokenizer = make_model("gptj"), make_tokenizer()
    options = OPTIONS | KINDS["truncate"] | {"max_edits": 2}
    found = adapt(model, make_samples(60), tokenizer=tokenizer, **options).to_dict()
    first, both = found["side_effects"]["kl"], found["further"][0]["side_effects"]["kl"]
    assert first < both
    limited = adapt(model, make_samples(60), tokenizer=tokenizer, max_kl=(first + both) / 2, **options)
    assert len(limited.edits) == 1
    assert "mean KL" in limited.to_dict()["further"][0]["reason"]


@pytest.mark.parametrize("architecture", ["gptj", "roberta"])
def test_a_model_that_does_not_go_on_with_english_has_none(architecture):
    """A masked one, and one whose tokenizer has next to none of its words."""
    model, tokenizer = make_model(architecture), make_tokenizer(architecture)
    result = adapt(model, make_samples(60), tokenizer=tokenizer, **OPTIONS, **KINDS["step"])
    assert result.edit is not None
    assert result.to_dict()["side_effects"] is None
    assert "neutral" not in str(result)
    with pytest.raises(LasertriError, match="a causal language model whose tokenizer knows English, not with this"):
        adapt(model, make_samples(60), tokenizer=tokenizer, max_kl=1.0, progress=False)


@pytest.mark.parametrize("max_kl", [None, 100])
def test_a_text_that_does_not_fit_costs_no_edit_unless_it_must_be_measured(max_kl, english, monkeypatch, caplog):
    def read(*_):
        raise out_of_memory()

    monkeypatch.setattr(EncodedText, "read", read)
    result = adapt(
        make_model("gptj"), make_samples(60), tokenizer=make_tokenizer(), max_kl=max_kl, **OPTIONS, **KINDS["shrink"]
    )
    said = "expected memory for side effects on neutral text, but the device has too little left"
    assert result.to_dict()["side_effects"] is None
    if max_kl is None:
        assert result.edit is not None
        assert f"not all side effects are known: {said}" in caplog.text
    else:
        assert result.edit is None
        assert result.to_dict()["reason"].startswith(said)
