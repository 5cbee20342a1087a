"""Whether processes hold parts of a model; with several of them: `test_sharded.py`."""

import pytest
import torch
from tiny import make_model, make_samples, make_tokenizer

from lasertri import adapt
from lasertri.errors import LasertriError
from lasertri.model.parallel import all_features, here, low_rank, mesh_of, whole


def test_a_whole_model_is_as_it_is():
    model = make_model("llama")
    weight, inputs = model.lm_head.weight, torch.randn(3, 16)
    assert mesh_of(model) is None
    assert here(weight) is whole(weight) is weight
    assert all_features(inputs, 1, None) is inputs
    left, right = torch.randn(30, 2), torch.randn(2, 16)
    torch.testing.assert_close(low_rank(inputs, left, right, None), inputs @ (left @ right).mT)


def test_parts_that_do_not_say_of_what_are_refused():
    model = make_model("llama")
    model._tp_size = 2  # as transformers before 5.17 leaves it, with plain tensors
    with pytest.raises(LasertriError, match=r"expected a model sharded by transformers 5.17 or later.*; upgrade"):
        adapt(model, make_samples(8), tokenizer=make_tokenizer())
