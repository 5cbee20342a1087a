"""What layers were given and asked to change, token by token, makes the gradient that autograd makes."""

import pytest
import torch
from faults import room_for
from stepping import encoded, gathered
from tiny import CONFIGS, TRANSPOSED, make_model
from torch import nn

from lasertri import LasertriError, Objective
from lasertri.errors import NotConvergedError
from lasertri.measure.objective import ObjectiveSamples
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_linear_layers
from lasertri.ops import compress_tokens
from lasertri.search.directions import make_step
from lasertri.search.tokens import FEWEST_TOKENS, Room, Tokens, gather_tokens


def product(tokens):
    """ΔᵀX of all pieces."""
    return torch.cat(tokens.deltas).double().mT @ torch.cat(tokens.inputs).double()


def weight_gradients(model, samples, targets):
    """Of the loss of all samples, by autograd, rows = outputs."""
    model.zero_grad()
    for target in targets:
        target.parameter(model).requires_grad_(True)
    sum(batch.loss(model) for batch in samples.loss_batches(range(len(samples)))).backward()
    found = {target: target.view(target.parameter(model).grad).double() for target in targets}
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", [*CONFIGS, *TRANSPOSED])
def test_they_make_autograds_gradient_of_every_linear_layer_and_expert(name):
    model = make_model(name)
    samples, targets = encoded(model, name), find_linear_layers(model)
    tokens = gathered(model, samples)
    assert list(tokens) == targets
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    expected = weight_gradients(model, samples, targets)
    largest = max(gradient.norm() for gradient in expected.values())
    for target, own in tokens.items():
        assert (product(own) - expected[target]).norm() <= 1e-5 * expected[target].norm() + 1e-7 * largest, target


@pytest.mark.parametrize("name", ["gptj", "gpt2", "phi3", "roberta", "t5", "mixtral", "qwen3_moe", "llama4_text"])
def test_in_bf16_they_are_as_near_fp32_as_autograds_gradient(name):
    narrow = make_model(name, dtype=torch.bfloat16)
    wide = make_model(name, dtype=torch.bfloat16).float()
    samples, targets = encoded(narrow, name), find_linear_layers(narrow)
    found, plain, exact = (
        gathered(narrow, samples),
        weight_gradients(narrow, samples, targets),
        weight_gradients(wide, samples, targets),
    )
    errors = {"tokens": 0.0, "autograd": 0.0}
    for target, own in found.items():
        assert {piece.dtype for piece in own.inputs + own.deltas} == {torch.bfloat16}
        size = exact[target].norm() + 1e-6
        errors["tokens"] += float(((product(own) - exact[target]) / size).square().sum())
        errors["autograd"] += float(((plain[target] - exact[target]) / size).square().sum())
    assert errors["tokens"] ** 0.5 <= 1.2 * errors["autograd"] ** 0.5


@pytest.mark.parametrize(
    ("name", "experts"),
    [("mixtral", "num_local_experts"), ("qwen3_moe", "num_experts"), ("llama4_text", "num_local_experts")],
)
def test_an_expert_has_the_tokens_sent_to_it_and_maybe_none(name, experts, caplog):
    model = make_model(name, **{experts: 8})
    samples, targets = encoded(model, name, 1), find_linear_layers(model, "experts")
    tokens = gathered(model, samples, targets)
    assert 0 < sum(len(own) > 0 for own in tokens.values()) < len(targets)
    assert "no gradient" not in caplog.text
    assert all(piece.any(dim=-1).all() for own in tokens.values() for piece in own.inputs)
    expected = weight_gradients(model, samples, targets)
    for target, gradient in expected.items():
        found = product(tokens[target]) if target in tokens else torch.zeros(target.shape).double()
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
    step = make_step(tokens, "whitened", rank=64, loss=1.0, samples=1)
    assert {target: right.shape[0] for target, (_, right) in step.factors.items()} == {
        target: min(len(own), *target.shape) for target, own in tokens.items() if len(own)
    }


def test_of_experts_alone_no_token_may_be_left():
    model = make_model("mixtral")
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _, __, out: (*out[:2], out[2] % 2))
    assert gathered(model, encoded(model, "mixtral"), find_linear_layers(model, r"experts\..*\.2")) == {}


@pytest.mark.parametrize("name", ["gptj", "llama", "roberta", "bart"])
def test_no_row_is_padding(name):
    """Samples of very different lengths in one batch leave what they leave alone, one by one."""
    model = make_model(name)
    together, alone = (gathered(model, encoded(model, name, 6, batch_size=size)) for size in (6, 1))
    for target in together:
        assert all(delta.any(dim=-1).all() for delta in together[target].deltas)
        rows = encoded(model, name, 6)
        longest = sum(max(answer.row.__len__() for answer in answers) + 1 for answers in rows.answers)
        assert 0 < len(together[target]) <= longest
        torch.testing.assert_close(product(together[target]), product(alone[target]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mt5", "bart", "roberta"])
def test_layers_with_the_same_input_hold_the_same_pieces(name):
    """Where they use the same tokens: the first has no use for queries, the last ones none for what nobody reads."""
    model = make_model(name)
    tokens = gathered(model, encoded(model, name))
    shared = 0
    for first, second in (
        ("k", "v"),
        ("key", "value"),
        ("k_proj", "v_proj"),
        ("gate_proj", "up_proj"),
        ("wi_0", "wi_1"),
    ):
        for target in tokens:
            if target.module.rpartition(".")[2] != first:
                continue
            path = target.module.removesuffix(first) + second
            [other] = [other for other in tokens if other.module == path]
            if len(tokens[target]) == len(tokens[other]) > 0:
                shared += 1
                assert tokens[target].shares_inputs(tokens[other]), target
                assert all(a is b for a, b in zip(tokens[target].inputs, tokens[other].inputs, strict=True))
    assert shared >= 3
    one, *others = (
        own for target, own in tokens.items() if target.module.endswith((".o_proj", ".wo", ".fc2", ".dense"))
    )
    assert not any(one.shares_inputs(other) for other in others)


def test_equal_inputs_are_not_the_same_inputs():
    piece = torch.ones(3, 2)
    one, same, equal = Tokens([piece], [piece]), Tokens([piece], [2 * piece]), Tokens([piece.clone()], [piece])
    assert one.shares_inputs(same)
    assert not one.shares_inputs(equal)
    assert not one.shares_inputs(one + one)


@pytest.mark.parametrize("most", [4, 16])
def test_no_more_than_twice_the_most_are_kept(most):
    model = make_model("gptj")
    samples = encoded(model, "gptj", 40, batch_size=4)
    whole, few = gathered(model, samples), gathered(model, samples, most=most)
    assert max(map(len, whole.values())) > 2 * most
    for target, own in few.items():
        assert len(own) <= 2 * most
        assert len(torch.cat(own.inputs)) == len(own)
        if most == 16:  # ranks are 16 at most: hardly anything can be lost
            exact = product(whole[target])
            assert (product(own) - exact).norm() <= 0.3 * exact.norm(), target


def test_tokens_that_do_not_fit_are_narrowed_and_only_then_compressed():
    model = make_model("gptj")
    targets = find_linear_layers(model)
    numbers = 2 * sum(sum(target.shape) for target in targets)  # of one token in both folds
    assert Room.within(4 * 1000 * numbers, model, targets, 1000, 2) == Room()
    assert Room.within(4 * 1000 * numbers, model, targets, 1001, 2) == Room(narrow=True)
    assert Room.within(4 * 1000 * numbers, model, targets, 2000, 2) == Room(narrow=True)
    assert Room.within(1, model, targets, 10, 2) == Room(FEWEST_TOKENS, narrow=True)
    assert Room.within(2 * 1000 * numbers, model.bfloat16(), targets, 1000, 2) == Room()


@pytest.mark.parametrize("most", [70, 128, 200, 319])
def test_a_layer_is_given_no_more_rows_than_hold_all_of_it(most):
    model = make_model("gptj", n_embd=64)
    targets = find_linear_layers(model)
    held = 2 * 2 * sum(2 * min(most, sum(target.shape)) * sum(target.shape) for target in targets)  # BF16, two folds
    room = Room.within(held, model, targets, 10**6, 2)
    assert room.narrow
    assert [room.of(target) for target in targets] == [min(most, sum(target.shape)) for target in targets]
    less = Room.within(held - 1, model, targets, 10**6, 2)
    assert sum(map(less.of, targets)) < sum(map(room.of, targets))


def test_experts_are_counted_with_the_tokens_that_they_are_sent_on_average():
    model = make_model("mixtral")  # two experts of three
    targets = find_linear_layers(model)
    experts = [target for target in targets if target.expert is not None]
    numbers = 2 * (sum(sum(t.shape) for t in targets if t.expert is None) + sum(sum(t.shape) for t in experts) * 2 / 3)
    budget = int(4 * 1000 * numbers) + 1
    assert Room.within(budget, model, targets, 1000, 2) == Room()
    assert Room.within(budget, model, targets, 1001, 2) == Room(narrow=True)
    beyond = Room.within(200 * 4 * len(targets) * 70, model, targets, 10**6, 2)
    assert beyond.share == 2 / 3
    assert beyond.of(experts[0]) == max(FEWEST_TOKENS, int(beyond.most * 2 / 3))


def test_narrowed_tokens_are_the_same_rounded_and_layers_still_share_them():
    model = make_model("llama")
    batches, targets = encoded(model, "llama").loss_batches(range(8)), find_linear_layers(model)
    with preserved(model):
        wide, narrow = (gather_tokens(model, targets, batches, Room(narrow=narrow)) for narrow in (False, True))
    for target in targets:
        for side in ("inputs", "deltas"):
            for a, b in zip(getattr(wide[target], side), getattr(narrow[target], side), strict=True):
                assert b.dtype == torch.bfloat16
                assert torch.equal(a.bfloat16(), b)
    gate, up = (next(t for t in targets if t.module.endswith(name)) for name in ("gate_proj", "up_proj"))
    assert narrow[gate].shares_inputs(narrow[up])


def test_a_gradient_that_is_nan_names_its_layer():
    model = make_model("gptj")
    model.transformer.h[2].mlp.fc_out.register_full_backward_hook(lambda _, inputs, __: (inputs[0] * torch.nan,))
    with pytest.raises(
        LasertriError, match=r"got NaN or Inf at the output of transformer\.h\.2\.mlp\.fc_in; a function"
    ):
        gathered(model, encoded(model, "gptj"))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_that_no_gradient_reaches_are_left_out_and_named(caplog):
    model = make_model("gptj")
    mlp = model.transformer.h[1].mlp
    forward = mlp.forward
    for unreached in (lambda x: forward(x).detach(), torch.no_grad()(lambda x: forward(x)), lambda x: 0 * x):
        mlp.forward, caplog.records[:] = unreached, []
        tokens = gathered(model, encoded(model, "gptj"))
        assert [t for t in find_linear_layers(model) if t not in tokens] == [
            t for t in find_linear_layers(model) if t.module.startswith("transformer.h.1.mlp")
        ]
        assert "2 layers that no gradient reached are left out, transformer.h.1.mlp.fc_in among them" in caplog.text
    assert not any("forward" in vars(module) for module in model.modules() if module is not mlp)


def test_where_no_gradient_reaches_any_layer_one_is_named():
    model = make_model("gptj")
    only = [target for target in find_linear_layers(model) if target.module.endswith("h.1.mlp.fc_in")]
    model.transformer.h[1].mlp.forward = lambda x: 0 * x
    with pytest.raises(LasertriError, match=r"none reached transformer\.h\.1\.mlp\.fc_in; it is offloaded, or not"):
        gathered(model, encoded(model, "gptj"), targets=only)


class Sliced(nn.Module):
    """Two layers on different parts of the same memory, one called by name."""

    def __init__(self):
        super().__init__()
        self.first, self.whole, self.part = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.first(input=x)
        return self.whole(hidden) + self.part(input=hidden[..., :4])


def test_views_of_one_tensor_are_told_apart_and_layers_may_be_called_by_name():
    torch.manual_seed(0)
    model, data = Sliced(), [(torch.randn(6), i % 3) for i in range(12)]

    def labels(batch):
        return torch.tensor([label for _, label in batch])

    objective = Objective(
        forward=lambda model, batch: model(torch.stack([x for x, _ in batch])),
        loss=lambda outputs, batch: nn.functional.cross_entropy(outputs, labels(batch), reduction="none"),
        score=lambda outputs, batch: outputs.argmax(-1) == labels(batch),
    )
    samples, targets = ObjectiveSamples(data, objective=objective), find_linear_layers(model)
    tokens = gathered(model, samples, targets=targets)
    for target, expected in weight_gradients(model, samples, targets).items():
        torch.testing.assert_close(product(tokens[target]), expected, rtol=1e-5, atol=1e-6)


def test_an_fp16_models_small_gradients_do_not_underflow():
    """Of 1e-7 times the loss, all of them are below what FP16 can hold."""
    model = make_model("gptj", dtype=torch.float16)
    exact = make_model("gptj", dtype=torch.float16).float()

    def scaled_down(samples):
        class Small:
            def __init__(self, batch):
                self.batch, self.size, self.entry = batch, batch.size, batch.entry

            def loss(self, model):
                return 1e-7 * self.batch.loss(model)

        return [Small(batch) for batch in samples.loss_batches(range(len(samples)))]

    found, expected = [], []
    for which, into in ((model, found), (exact, expected)):
        targets = find_linear_layers(which)
        with preserved(which):
            into.append(gather_tokens(which, targets, scaled_down(encoded(which, "gptj")), Room()))
    largest = max(product(own).norm() for own in expected[0].values())
    for target, own in found[0].items():
        difference = (product(own) - product(expected[0][target])).norm()
        assert difference <= 0.05 * product(expected[0][target]).norm() + 0.01 * largest, target


def test_an_fp16_models_large_gradients_do_not_overflow():
    model = make_model("gptj", dtype=torch.float16)
    with torch.no_grad():
        model.transformer.h[1].mlp.fc_out.weight.mul_(60)
    for own in gathered(model, encoded(model, "gptj")).values():
        assert all(piece.isfinite().all() for piece in own.deltas)


class Twice(nn.Module):
    """Runs its layer on what it made of the input."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.inner(self.inner(x).tanh()).tanh())


def classify(count=30):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator)
    samples = list(zip(x, (x[:, 0] > 0).long(), strict=True))
    objective = Objective(
        lambda model, batch: model(torch.stack([x for x, _ in batch]).to(next(model.parameters()).dtype)),
        lambda out, batch: nn.functional.cross_entropy(out, torch.stack([y for _, y in batch]), reduction="none"),
        lambda out, batch: out.argmax(-1) == torch.stack([y for _, y in batch]),
    )
    return ObjectiveSamples(samples, objective=objective, batch_size=7)


@pytest.mark.parametrize("make", [Twice, lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2))])
def test_any_module_with_an_objective_and_a_layer_that_runs_twice(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
    samples, targets = classify(), find_linear_layers(model)
    tokens = gathered(model, samples)
    expected = weight_gradients(model, samples, targets)
    for target, own in tokens.items():
        torch.testing.assert_close(product(own), expected[target], rtol=1e-10, atol=1e-12)
    if make is Twice:
        assert len(tokens[targets[0]]) == 2 * len(tokens[targets[1]]) == 60


def test_targets_may_be_few_and_frozen_models_stay_so():
    model = make_model("llama").train()
    target = [target for target in find_linear_layers(model) if target.module.endswith("1.mlp.up_proj")]
    samples = encoded(model, "llama")
    model.eval()
    tokens = gathered(model, samples, target)
    expected = weight_gradients(model, samples, target)
    torch.testing.assert_close(product(tokens[target[0]]), expected[target[0]], rtol=1e-4, atol=1e-6)


def test_progress_is_told_batch_by_batch():
    model, told = make_model("gptj"), []
    batches = encoded(model, "gptj").loss_batches(range(12))
    with preserved(model):
        gather_tokens(model, find_linear_layers(model), batches, Room(), advance=told.append)
    assert told == sorted(batch.size for batch in batches)
    assert len(told) == 3


@pytest.mark.parametrize("name", ["gptj", "t5"])
def test_fewer_tokens_at_once_give_the_same_gradients(name):
    model = make_model(name)
    samples = encoded(model, name)
    expected = gathered(model, samples)
    asked = room_for(model, 12)
    found = gathered(model, samples)
    assert max(asked) > 12
    for target, own in found.items():
        torch.testing.assert_close(product(own), product(expected[target]), rtol=1e-3, atol=1e-5)


def test_a_layer_whose_tokens_cannot_be_compressed_is_left_out(monkeypatch, caplog):
    model, refused = make_model("gptj"), []
    samples = encoded(model, "gptj")

    def compress(inputs, deltas, most):
        if not refused:
            refused.append(inputs)
            raise NotConvergedError("did not converge")
        return compress_tokens(inputs, deltas, most)

    monkeypatch.setattr("lasertri.search.tokens.compress_tokens", compress)
    found = gathered(model, samples, most=3)
    [left] = set(find_linear_layers(model)) - found.keys()
    assert f"{left} is left out: did not converge" in caplog.text
    assert len(caplog.records) == 1
