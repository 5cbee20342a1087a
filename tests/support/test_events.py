"""A search is told, event by event, in dictionaries ready for JSON; nobody hears of what was tried before it."""

import json

import pytest
from tiny import make_samples, make_tokenizer

from lasertri import LasertriError, Sample, adapt
from lasertri.support.events import tell, told_to

TRUNCATIONS = {"edit": "truncate", "blocks": (1,), "ratios": (0.5, 0.1), "count": 3}


def samples():
    return [Sample(s.prompt, choices=s.choices, label=int(i % 9 == 0)) for i, s in enumerate(make_samples(60))]


@pytest.mark.parametrize("options", [{}, {"edit": "shrink"}, TRUNCATIONS, TRUNCATIONS | {"max_edits": 2}])
def test_every_event_is_told_once_and_in_order(model, options):
    events = []
    result = adapt(
        model, samples(), tokenizer=make_tokenizer(), accept="best", progress=False, callback=events.append, **options
    )
    assert json.dumps(events, allow_nan=False)
    assert events[-1] == {"event": "result"} | result.to_dict()
    assert events[0] == {"event": "phase", "phase": "baseline"}
    assert {event["phase"] for event in events if event["event"] == "phase"} == result.seconds.keys()
    told = [event for event in events if event["event"] == "round"]
    assert [event["edit"] for event in told] == [found.to_dict()["edit"] for found in result.rounds]
    assert not {"trials", "scores"} & told[0].keys()
    trials = [event for event in events if event["event"] == "trial"]
    measured = [{"event": "trial"} | trial.to_dict() for found in result.rounds for trial in found.trials]
    assert sorted(map(str, trials)) == sorted(map(str, measured))
    names = [event["event"] for event in events]
    assert names.index("trial") < names.index("round") < names.index("result")


def test_what_the_function_raises_ends_the_search_and_leaves_the_model_as_it_was(model):
    before = [parameter.clone() for parameter in model.parameters()]

    def refuse(event):
        if event["event"] == "round":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(
            model, samples(), tokenizer=make_tokenizer(), accept="best", progress=False, callback=refuse, **TRUNCATIONS
        )
    assert all(a.equal(b) for a, b in zip(before, model.parameters(), strict=True))
    tell("phase", lambda: pytest.fail("nobody listens"))


def test_what_it_raises_at_the_result_loses_nothing(model, caplog):
    def refuse(event):
        if event["event"] == "result":
            raise OSError("the tracker is gone")

    options = {"tokenizer": make_tokenizer(), "accept": "best", "progress": False}
    result = adapt(model, samples(), callback=refuse, **options)
    assert result.edits
    assert "the callback failed at the result" in caplog.text
    assert "the tracker is gone" in caplog.text


def test_what_is_no_function_is_refused(model):
    with pytest.raises(LasertriError, match="expected a function of one event as callback, got 'wandb'"):
        adapt(model, samples(), tokenizer=make_tokenizer(), callback="wandb")


def test_listeners_stand_inside_one_another():
    heard = []
    with told_to(heard.append), told_to(None):
        tell("phase", lambda: {"phase": "inner"})
    assert heard == []
