"""Trials with the weight in place, of as many samples at once as memory holds."""

import numpy as np
import pytest
import torch
from exactness import candidates_of, encode
from faults import room_for
from tiny import make_model, make_tokenizer

from lasertri.factors.store import FactorStore
from lasertri.search.in_place import InPlace
from lasertri.search.trials import plan_trials


@pytest.mark.parametrize("replayed", [True, False])
def test_fewer_samples_at_once_give_the_same(replayed):
    model = make_model("mixtral")
    samples, candidates = encode(model, make_tokenizer("mixtral")), candidates_of(model)[:3]
    factors = FactorStore(model, {c.target for c in candidates}, [1], budget=1 << 30)
    _, (runner, numbers) = plan_trials(model, candidates, samples, factors)
    assert numbers == {0, 1, 2}
    if not replayed:
        runner = InPlace(model, samples, factors)
    weights, found = {name: value.clone() for name, value in model.state_dict().items()}, []
    with torch.no_grad():
        for tokens in (999, 12):
            asked = room_for(model, tokens)
            found.append(runner.run(candidates, range(len(samples))))
            assert (max(asked) > tokens) == (tokens == 12)
    for name in ("edited", "beside", "baseline"):
        one, other = (getattr(readings, name).log_probs for readings in found)
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
