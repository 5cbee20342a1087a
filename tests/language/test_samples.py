"""All that samples ask for is read, in batches that memory holds."""

import numpy as np
import pytest
import torch
from faults import room_for
from tiny import make_model, make_samples, make_tokenizer

from lasertri import Sample
from lasertri.errors import TooLittleMemoryError
from lasertri.language.samples import EncodedSamples

SAMPLES = [
    *make_samples(7),
    Sample("a b c", choices=("d e f", "g", "h i"), label=2),
    Sample("b c d e", "f g h"),
    *(Sample(prompt, "x", window=3, match="contains") for prompt in ("a b", "c d e", "f", "g h", "i j k l")),
]


@pytest.mark.parametrize("architecture", ["gptj", "roberta", "t5"])
def test_batches_that_memory_does_not_hold_are_halved_and_read_the_same(architecture):
    model, tokenizer, told = make_model(architecture), make_tokenizer(architecture), []
    samples = EncodedSamples(SAMPLES, model=model, tokenizer=tokenizer, batch_size=8)
    with torch.no_grad():
        expected = samples.read(model)
        asked = room_for(model, 9)
        found = samples.read(model, advance=told.append)
    assert max(asked) > 9
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
    assert (found.greedy == expected.greedy).all()
    assert (found.written == expected.written).all()
    assert sum(told) == samples.work
    room_for(model, 0)
    with torch.no_grad(), pytest.raises(TooLittleMemoryError, match="expected memory for one sample at a time"):
        samples.read(model)
