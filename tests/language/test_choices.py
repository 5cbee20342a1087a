"""The loss of choices is that of the right one among them, however many tokens and choices there are."""

import numpy as np
import pytest
import torch
from stepping import encoded
from tiny import CAUSAL, CLOSED, MASKED, OPENED, PAD, make_model, make_samples, make_tokenizer

from lasertri import Sample
from lasertri.language.choices import ChoiceBatch
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_linear_layers

SEVERAL = [
    Sample("a b c", choices=("d e f", "g", "h i"), label=2),
    Sample("b c", choices=("yes", "no"), label=0),
    Sample("d e f g", choices=("a", "b", "c", "d e"), label=1),
    Sample("x", choices=("a b", "a c"), label=1),  # which begin alike
    Sample("y z a b c d", choices=("no", "yes yes yes"), label=1),
]


def log_prob(model, name, prompt, text):
    """Summed over the answer's tokens, one row at a time, the plain way."""
    tokenizer = make_tokenizer(name)
    before, answer = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, text))
    if name in CAUSAL:
        logits = model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]
    elif name in MASKED:
        masks = [tokenizer.mask_token_id] * len(answer)
        row = [OPENED, *before, *masks, CLOSED]
        logits = model(input_ids=torch.tensor([row])).logits[0, 1 + len(before) : -1]
    else:
        opened = [OPENED] if name == "bart" else []
        row = [*opened, *before, CLOSED]
        decoder = [PAD, *opened, *answer]
        logits = model(input_ids=torch.tensor([row]), decoder_input_ids=torch.tensor([decoder])).logits[0]
        logits = logits[len(opened) : -1]
    return logits.log_softmax(-1)[range(len(answer)), answer].sum()


def plain_losses(model, name, samples):
    """−log softmax of the choices' log-probabilities at the right one; of a completion minus its log-probability."""
    losses = []
    for sample in samples:
        found = torch.stack([log_prob(model, name, sample.prompt, text) for text in sample.answers])
        losses.append(-(found.log_softmax(0) if sample.choices else found)[sample.gold])
    return torch.stack(losses)


@pytest.mark.parametrize("name", ["gptj", "llama", "gpt_neo", "bloom", "opt", "roberta", "t5", "bart"])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_loss_is_that_of_the_right_choice_among_the_choices(name, batch_size):
    """Bloom, masked models and encoder-decoders have a row for each choice; others branch."""
    model, samples = make_model(name), [*SEVERAL, *make_samples(4)]
    known = encoded(model, name, samples, batch_size=batch_size)
    batches = known.loss_batches(range(len(samples)))
    assert all(isinstance(batch, ChoiceBatch) for batch in batches)
    assert sum(len(batch.gold) for batch in batches) == len(samples)
    for batch in batches:  # a sample's choices stay together, even where they have more rows than a batch
        assert len(batch.gold) == 1 or len(batch.batch.input_ids) <= batch_size
    with torch.no_grad():
        expected = plain_losses(model, name, samples)
        found = sum(batch.loss(model) for batch in batches)
        read = known.read(model).sample_losses()
    assert found.item() == pytest.approx(expected.sum().item(), rel=1e-5)
    np.testing.assert_allclose(read, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gptj", "bart"])
def test_of_some_samples_it_is_theirs(name):
    model = make_model(name)
    known = encoded(model, name, SEVERAL, batch_size=2)
    with torch.no_grad():
        losses = plain_losses(model, name, SEVERAL)
        for chosen in ([3], [4, 0], [2, 3, 1]):
            found = sum(batch.loss(model) for batch in known.loss_batches(chosen))
            assert found.item() == pytest.approx(losses[chosen].sum().item(), rel=1e-5)
            np.testing.assert_allclose(known.read(model, chosen).sample_losses(chosen), losses[chosen], rtol=1e-4)
    assert known.loss_batches([]) == []


@pytest.mark.parametrize("name", ["gptj", "phi3", "roberta", "t5"])
def test_its_gradient_is_the_plain_ones(name):
    model = make_model(name)
    known, targets = encoded(model, name, SEVERAL, batch_size=3), find_linear_layers(model)
    gradients = []
    for loss in (
        lambda: sum(batch.loss(model) for batch in known.loss_batches(range(len(SEVERAL)))),
        lambda: plain_losses(model, name, SEVERAL).sum(),
    ):
        model.zero_grad()
        loss().backward()
        gradients.append([target.parameter(model).grad.clone() for target in targets])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["gptj", "bloom", "roberta", "t5"])
def test_of_completions_it_is_minus_their_log_probability(name):
    model = make_model(name)
    samples = [Sample(sample.prompt, sample.answers[sample.gold]) for sample in SEVERAL]
    known = encoded(model, name, samples, batch_size=2)
    with torch.no_grad(), preserved(model):
        expected = plain_losses(model, name, samples)
        found = sum(batch.loss(model) for batch in known.loss_batches(range(len(samples))))
        gold = sum(batch.loss(model) for batch in known.gold_batches())
        read = known.read(model).sample_losses()
    assert found.item() == gold.item() == pytest.approx(expected.sum().item(), rel=1e-5)
    np.testing.assert_allclose(read, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_reads_what_its_tokens_give():
    model = make_model("gptj")
    known = encoded(model, "gptj", SEVERAL, batch_size=9)
    [batch] = known.loss_batches(range(len(SEVERAL)))
    readings = known.readings()
    with torch.no_grad():
        readings.record(batch, *batch.read(model))
        expected = known.read(model).sample_losses()
    np.testing.assert_allclose(readings.sample_losses(), expected, rtol=1e-5)


def test_impossible_choices_leave_an_infinite_loss_not_nan():
    model = make_model("gptj")
    known = encoded(model, "gptj", SEVERAL[:2])
    readings = known.read(model.requires_grad_(False))
    readings.log_probs[known.table.first_token[known.table.gold[1]]] = -np.inf
    assert readings.sample_losses()[1] == np.inf
    readings.log_probs[:] = np.nan
    assert (readings.sample_losses() == np.inf).all()


@pytest.mark.parametrize("name", ["gptj", "roberta", "t5"])
def test_parts_of_a_batch_have_parts_of_its_loss(name):
    model = make_model(name)
    samples = [*SEVERAL, *make_samples(3), make_samples(1)[0]]  # two that ask alike share a row
    known = encoded(model, name, samples, batch_size=40)
    [batch] = known.loss_batches(range(len(samples)))
    parts = [batch[:4], batch[4:5], batch[5:]]
    assert [len(part) for part in parts] == [4, 1, len(samples) - 5]
    assert sum(len(part.entry) for part in parts) == len(batch.entry)
    with torch.no_grad():
        losses = [float(part.loss(model)) for part in parts]
        assert sum(losses) == pytest.approx(float(batch.loss(model)), rel=1e-5)
    for part in parts:
        assert set(known.row_samples(part).tolist()) <= set(known.row_samples(batch).tolist())
