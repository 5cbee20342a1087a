"""Trials on a CUDA device: as close to the FP64 edit as an edited model there."""

import pytest
import torch
from exactness import assert_as_close_as_edits, candidates_of, encode
from tiny import make_model, make_samples

from lasertri import adapt
from lasertri.search.tokens import weight_gradient

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ["gptj", "gpt2", "opt", "llama", "gemma2"])
def test_trials_are_as_close_as_edits(tokenizer, architecture, dtype):
    model = make_model(architecture, dtype=dtype).cuda()
    assert_as_close_as_edits(model, tokenizer, candidates_of(model), encode(model, tokenizer))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_whole_method_runs_and_leaves_the_weights(tokenizer, dtype):
    model = make_model("llama", dtype=dtype).cuda()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = adapt(model, make_samples(48), tokenizer=tokenizer, accept="best", blocks=(1, 3), progress=False)
    assert result.edit is not None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(997,), (3, 499), (0,)])
def test_the_gradient_of_narrow_tokens_is_that_of_wide_ones(dtype, lead):
    generator = torch.Generator().manual_seed(0)
    deltas, inputs = (torch.randn(*lead, size, generator=generator).to(dtype) for size in (61, 131))
    found = weight_gradient(deltas.cuda(), inputs.cuda())
    assert found.dtype == torch.float32
    exact = deltas.double().mT @ inputs.double()
    torch.testing.assert_close(found.double().cpu(), exact, rtol=1e-4, atol=1e-3)
