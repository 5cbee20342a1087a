"""Steps of many layers, of those together that share inputs as far as memory holds them and solvers converge."""

import pytest
import torch
from faults import out_of_memory
from stepping import encoded, gathered
from tiny import make_model

from lasertri import lowrank_blocks, whiten_blocks
from lasertri.errors import NotConvergedError
from lasertri.search import directions
from lasertri.search.directions import make_step

OPS = {"plain": lowrank_blocks, "whitened": whiten_blocks}


@pytest.fixture(params=[1, 3], ids=["alone", "stacked"])
def stacked(request, monkeypatch):
    """As on a GPU, layers of one shape are made together."""
    monkeypatch.setitem(directions.STACKED, "cpu", request.param)
    return request.param


@pytest.fixture(scope="module")
def tokens():
    model = make_model("llama")
    return gathered(model, encoded(model, "llama"))


def step(tokens, direction):
    return make_step(tokens, direction, rank=4, loss=1.0, samples=12)


def patched(monkeypatch, direction, check):
    op = OPS[direction]

    def checked(matrix, *others, **options):
        check(matrix, options)
        return op(matrix, *others, **options)

    monkeypatch.setattr(f"lasertri.search.directions.{op.__name__}", checked)


def assert_alike(found, expected):
    assert found.factors.keys() == expected.factors.keys()
    for target, (left, right) in found.factors.items():
        one, other = expected.factors[target]
        torch.testing.assert_close(left @ right, one @ other, rtol=1e-3, atol=1e-4 * float((one @ other).abs().max()))


@pytest.mark.parametrize("direction", OPS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_layers_of_one_shape_are_made_together_as_they_are_alone(name, direction, monkeypatch):
    model = make_model(name)
    tokens = gathered(model, encoded(model, name))
    expected, sizes = step(tokens, direction), []
    monkeypatch.setitem(directions.STACKED, "cpu", 3)
    patched(monkeypatch, direction, lambda matrix, _: sizes.append(len(matrix)))
    found = step(tokens, direction)
    assert max(sizes) > 1
    assert_alike(found, expected)


@pytest.mark.usefixtures("stacked")
def test_layers_that_share_inputs_are_made_apart_where_memory_does_not_hold_them(tokens, monkeypatch):
    expected, widths = step(tokens, "whitened"), []

    def check(deltas, _):
        widths.append(deltas.shape[-1])
        if deltas.shape[-1] > 40:
            raise out_of_memory()

    patched(monkeypatch, "whitened", check)
    assert_alike(step(tokens, "whitened"), expected)
    assert max(widths) > 40


@pytest.mark.usefixtures("stacked")
@pytest.mark.parametrize("direction", OPS)
def test_the_reference_takes_the_place_of_a_backend_that_does_not_converge(tokens, monkeypatch, direction):
    def check(_, options):
        if options["backend"] != "reference":
            raise NotConvergedError("did not converge")

    expected = step(tokens, direction)
    patched(monkeypatch, direction, check)
    assert_alike(step(tokens, direction), expected)


@pytest.mark.usefixtures("stacked")
@pytest.mark.parametrize("direction", OPS)
def test_a_layer_that_nothing_converges_on_is_left_out_alone(tokens, monkeypatch, caplog, direction):
    name = "model.layers.1.self_attn.q_proj"
    target = next(target for target in tokens if str(target) == name)
    delta = torch.cat(tokens[target].deltas)
    worst = {"plain": delta.mT @ torch.cat(tokens[target].inputs), "whitened": delta}[direction]

    def check(matrix, _):
        parts = (part for own in matrix for part in own.split(worst.shape[1], dim=1))
        if any(part.shape == worst.shape and torch.equal(part, worst) for part in parts):
            raise NotConvergedError("did not converge")

    patched(monkeypatch, direction, check)
    found = step(tokens, direction)
    assert tokens.keys() - found.factors.keys() == {target}
    assert f"{name} is left out of the step: no eigensolver and no SVD converges on it" in caplog.text
    without = step({other: own for other, own in tokens.items() if other != target}, direction)
    assert_alike(found, without)


@pytest.mark.usefixtures("stacked")
def test_that_nothing_converges_on_any_layer_is_said(tokens, monkeypatch):
    def check(*_):
        raise NotConvergedError("did not converge")

    patched(monkeypatch, "plain", check)
    with pytest.raises(NotConvergedError, match=r"step of .* or another layer, but .* than plain \(--direction\)"):
        step(tokens, "plain")
