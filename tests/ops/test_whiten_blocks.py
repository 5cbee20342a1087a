"""The gradient whitened on both sides, from tokens and from their moments."""

import itertools

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spectra import gaussian

from lasertri import LasertriError, Partition, whiten_blocks, whiten_moments
from lasertri.ops import krylov, whiten

SHAPES = [(1, 1, 1), (5, 1, 7), (5, 7, 1), (31, 13, 13), (97, 17, 31), (7, 31, 17), (19, 7, 53), (19, 53, 7)]  # T, m, n
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def tokens(count, rows, columns, *, seed=0, dtype=torch.float64):
    """Δ and X that share some directions, as gradients and activations do, with uneven moments."""
    shared = gaussian(count, 4, seed=seed)
    deltas, inputs = (
        gaussian(count, size, seed=seed + 1 + i) * torch.logspace(0, -1.5, size)
        + shared @ gaussian(4, size, seed=seed + 3 + i)
        for i, size in enumerate((rows, columns))
    )
    return deltas.to(dtype), inputs.to(dtype)


def assert_best(step, whitened, blocks, rank, *, tolerance=1e-9):
    """Singular values, and a residual that no other factors of this rank could make smaller."""
    assert step.left.shape == (sum(map(len, blocks)), rank)
    assert step.right.shape == (len(blocks), rank, whitened[0].shape[1])
    for j, (block, exact) in enumerate(zip(blocks, whitened, strict=True)):
        sigma = torch.linalg.svdvals(exact)
        kept = sigma[:rank]
        torch.testing.assert_close(step.sigma[j, : len(kept)], kept, rtol=0, atol=tolerance)
        assert not step.sigma[j, len(kept) :].any(), "padding is zero"
        left, right = step.left[list(block)].double(), step.right[j].double()
        rounding = torch.finfo(step.left.dtype).eps
        assert float((exact - left @ right).norm()) <= float(sigma[rank:].norm()) + max(tolerance, 8 * rounding)
        torch.testing.assert_close(left.norm(dim=0), step.sigma[j].sqrt(), rtol=0, atol=tolerance**0.5)
        torch.testing.assert_close(right.norm(dim=1), step.sigma[j].sqrt(), rtol=0, atol=tolerance**0.5)


def moments(deltas, inputs):
    return deltas.mT @ inputs, deltas.mT @ deltas, inputs.mT @ inputs


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("form", ["tokens", "moments"])
def test_every_block_has_its_own_whitened_gradient_at_its_best_rank(shape, blocks, form, backend):
    deltas, inputs = tokens(*shape)
    rows = oracle.row_lists(shape[1], min(blocks, shape[1]))
    exact = [oracle.whitened(deltas, inputs, block, 0.1) for block in rows]
    for rank in {0, 1, min(len(rows[0]), shape[2])}:
        options = {"rank": rank, "blocks": len(rows), "backend": backend}
        if form == "tokens":
            step = whiten_blocks(deltas, inputs, **options)
        else:
            step = whiten_moments(*moments(deltas, inputs), **options)
        assert_best(
            step, exact, rows, rank, tolerance=1e-9 if form == "tokens" else 1e-7
        )  # moments know half the digits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [11, 60], ids=["few tokens", "many"])
def test_every_dtype_is_whitened_in_fp64(dtype, count, backend):
    deltas, inputs = tokens(count, 13, 29, dtype=dtype)
    step = whiten_blocks(deltas, inputs, rank=4, blocks=2, backend=backend)
    assert step.left.dtype == step.right.dtype == torch.promote_types(dtype, torch.float32)
    assert step.sigma.dtype == torch.float64
    rows = oracle.row_lists(13, 2)
    assert_best(step, [oracle.whitened(deltas.double(), inputs.double(), block, 0.1) for block in rows], rows, 4)


@pytest.mark.parametrize("shape", [(60, 41, 83), (120, 41, 37), (30, 83, 41)])
@pytest.mark.parametrize("damping", [0.01, 0.1, 1.0])
def test_fp32_is_as_close_as_plain_fp32_svds(shape, damping, backend):
    deltas, inputs = tokens(*shape, dtype=torch.float32)
    block = [range(shape[1])]
    exact, plain = (
        oracle.whitened(deltas.to(d), inputs.to(d), block[0], damping) for d in (torch.float64, torch.float32)
    )
    step = whiten_blocks(deltas, inputs, rank=8, damping=damping, precision="float32", backend=backend)
    # a Gram matrix squares what an SVD need not, up to the damping: κ = size / damping at most
    squared = torch.finfo(torch.float32).eps * min(shape[1:]) / damping
    allowed = 4 * float((plain - exact).norm()) + squared
    assert_best(step, [exact], block, 8, tolerance=allowed)


@pytest.mark.parametrize("side", ["deltas", "inputs"])
@pytest.mark.parametrize("shape", [(80, 61, 163), (303, 101, 211), (67, 163, 61)])
def test_of_tokens_that_point_alike_fp32_has_the_digits_of_fp64(shape, side, backend):
    sides = dict(zip(("deltas", "inputs"), tokens(*shape, dtype=torch.float32), strict=True))
    sides[side] = sides[side] * 1e-3 + sides[side][:1]
    exact = oracle.whitened(sides["deltas"].double(), sides["inputs"].double(), range(shape[1]), 0.1)
    step = whiten_blocks(**sides, rank=8, precision="float32", backend=backend)
    assert_best(step, [exact], [range(shape[1])], 8, tolerance=1e-6)


@pytest.mark.parametrize("offsets", [(0, 2, 9, 12), (0, 1, 2, 12), (0, 5, 10, 12)])
def test_clusters_of_unequal_height_go_back_to_the_rows_they_came_from(offsets, backend):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    deltas, inputs = tokens(20, 12, 7)
    clusters = [order[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    exact = [oracle.whitened(deltas, inputs, block, 0.1) for block in clusters]
    partition = Partition(offsets, order)
    assert_best(whiten_blocks(deltas, inputs, rank=3, blocks=partition, backend=backend), exact, clusters, 3)
    added = whiten_moments(*moments(deltas, inputs), rank=3, blocks=partition, backend=backend)
    assert_best(added, exact, clusters, 3, tolerance=1e-7)


def test_leading_dimensions_are_a_stack_of_layers(backend):
    layers = [tokens(9, 5, 7, seed=10 * i) for i in range(6)]
    deltas, inputs = (torch.stack(side).unflatten(0, (2, 3)) for side in zip(*layers, strict=True))
    stack = whiten_blocks(deltas, inputs, rank=2, blocks=2, backend=backend)
    added = whiten_moments(*moments(deltas, inputs), rank=2, blocks=2, backend=backend)
    rows = oracle.row_lists(5, 2)
    for i, (delta, x) in enumerate(layers):
        exact = [oracle.whitened(delta, x, block, 0.1) for block in rows]
        for step, tolerance in ((stack, 1e-9), (added, 1e-7)):
            assert_best(type(step)(*(part[divmod(i, 3)] for part in step)), exact, rows, 2, tolerance=tolerance)
    assert whiten_blocks(deltas[:0], inputs[:0], rank=2, blocks=2, backend=backend).right.shape == (0, 3, 2, 2, 7)


@given(st.data())
def test_any_shape_and_scale_has_correlations_from_zero_to_one_and_the_least_residual(data):
    count, rows, columns = (data.draw(st.sampled_from([1, 2, 3, 5, 7, 11, 13, 17])) for _ in range(3))
    blocks = data.draw(st.integers(1, rows))
    parts = oracle.row_lists(rows, blocks)
    rank = data.draw(st.integers(0, min(len(parts[0]), columns)))
    damping, scale = data.draw(st.floats(1e-3, 10)), data.draw(st.sampled_from([1e-150, 1e-30, 1.0, 1e30, 1e150]))
    deltas, inputs = tokens(count, rows, columns, seed=data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):  # repeated tokens, and features that are never active
        deltas, inputs = deltas[torch.arange(count) // 2], inputs[torch.arange(count) // 2]
        inputs[:, ::3] = 0
    step = whiten_blocks(scale * deltas, inputs / scale, rank=rank, blocks=blocks, damping=damping)
    exact = [oracle.whitened(deltas, inputs, block, damping) for block in parts]
    assert_best(step, exact, parts, rank, tolerance=1e-8)
    assert 0 <= float(step.sigma.sum()) <= step.sigma.numel()
    added = whiten_moments(*moments(deltas, inputs), rank=rank, blocks=blocks, damping=damping)
    assert_best(added, exact, parts, rank, tolerance=1e-6)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_moments_in_any_units_are_whitened_alike(precision):
    deltas, inputs = tokens(30, 5, 7)
    grad, b, c = moments(deltas, inputs)
    options = {"rank": 3, "precision": precision}
    expected = whiten_moments(grad, b, c, **options)
    for power in (-70, 70):
        scaled = whiten_moments(2.0**power * grad, 2.0 ** (4 * power) * b, 2.0 ** (-2 * power) * c, **options)
        torch.testing.assert_close(scaled.sigma, expected.sigma, rtol=1e-6, atol=0)


@pytest.mark.parametrize("count", [4, 30])
def test_tokens_that_are_all_zero_give_nothing(count, backend):
    deltas, inputs = tokens(count, 5, 7)
    for step in (
        whiten_blocks(torch.zeros_like(deltas), inputs, rank=2, blocks=2, backend=backend),
        whiten_blocks(deltas, torch.zeros_like(inputs), rank=2, blocks=2, backend=backend),
        whiten_moments(*moments(0 * deltas, inputs), rank=2, backend=backend),
    ):
        for part in step:
            assert part.isfinite().all()
            assert not part.any()


def test_tokens_that_correlate_fully_have_correlation_one_but_for_the_damping(backend):
    x = gaussian(40, 6)
    step = whiten_blocks(x @ gaussian(6, 6, seed=1), x, rank=6, damping=1e-9, backend=backend)
    torch.testing.assert_close(step.sigma, torch.ones(1, 6, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("view", [lambda t: t.mT.contiguous().mT, lambda t: torch.stack([t, t], dim=-1)[..., 0]])
def test_strides_do_not_matter_and_nothing_is_differentiated(view, backend):
    deltas, inputs = tokens(20, 12, 7)
    expected = whiten_blocks(deltas, inputs, rank=3, blocks=3, backend=backend)
    step = whiten_blocks(view(deltas).requires_grad_(), view(inputs), rank=3, blocks=3, backend=backend)
    assert not any(part.requires_grad for part in step)
    torch.testing.assert_close(step.left @ step.right[0], expected.left @ expected.right[0], rtol=0, atol=1e-10)


def largest(deltas, inputs):
    """Elements of the largest tensor that is made."""
    sizes = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    with Largest():  # which would see the op as a whole
        whiten.whiten_blocks([deltas[None, None]], inputs[None], 4, 0.1)
    return max(sizes)


def test_no_matrix_of_the_weights_size_is_made_where_tokens_are_few():
    assert largest(*tokens(8, 300, 500, dtype=torch.float32)) <= 8 * 500


@pytest.fixture
def by_products(monkeypatch):
    """As on a GPU, if these sizes were large."""
    monkeypatch.setattr(whiten, "BY_PRODUCTS", {"cpu"})
    monkeypatch.setattr(krylov, "SHORTEST", 100)
    monkeypatch.setattr(krylov, "MARGIN", 3)


@pytest.fixture
def no_eigenproblems(monkeypatch):
    monkeypatch.setattr(whiten, "_Side", None)


LARGE = {"few tokens": (251, 307, 263), "many": (401, 257, 269), "fewer inputs": (263, 307, 251)}


@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("by_products", "no_eigenproblems")
def test_where_products_are_fast_no_eigenproblem_is_as_large_as_tokens_or_features(shape, dtype):
    deltas, inputs = tokens(*shape, dtype=dtype)
    block = range(shape[1])
    wide = [side.double() for side in (deltas, inputs)]
    exact = oracle.whitened(*wide, block, 0.1)
    assert_best(whiten_blocks(deltas, inputs, rank=5), [exact], [block], 5, tolerance=1e-6)
    plain = oracle.whitened(*(side.float() for side in wide), block, 0.1)
    allowed = 4 * float((plain - exact).norm()) + torch.finfo(torch.float32).eps * min(shape[1:]) / 0.1
    step = whiten_blocks(deltas, inputs, rank=5, precision="float32")
    assert_best(step, [exact], [block], 5, tolerance=allowed)


@pytest.mark.usefixtures("by_products", "no_eigenproblems")
def test_by_products_blocks_and_layers_are_apart_and_zeros_give_nothing():
    layers = [tokens(251, 514, 257, seed=10 * i, dtype=torch.float32) for i in range(2)]
    layers.append((torch.zeros(251, 514), layers[0][1]))
    deltas, inputs = (torch.stack(side) for side in zip(*layers, strict=True))
    step, rows = whiten_blocks(deltas, inputs, rank=5, blocks=2), oracle.row_lists(514, 2)
    for i, (delta, x) in enumerate(layers):
        exact = [oracle.whitened(delta.double(), x.double(), block, 0.1) for block in rows]
        assert_best(type(step)(*(part[i] for part in step)), exact, rows, 5, tolerance=1e-6)
    assert not step.left[2].any()
    assert not step.right[2].any()


@pytest.mark.usefixtures("by_products", "no_eigenproblems")
def test_by_products_no_matrix_of_tokens_by_tokens_is_made_where_tokens_are_many():
    assert largest(*tokens(1200, 203, 211, dtype=torch.float32)) <= 1200 * 211


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.usefixtures("by_products", "no_eigenproblems")
def test_by_products_fewer_correlations_than_asked_for_are_found_beside_many(precision):
    layers = [tokens(251, 257, 263, seed=10 * i, dtype=torch.float32) for i in range(3)]
    layers[0][0][3:] = 0  # gradients at three tokens
    layers[1][1][:, 1:] = 0  # inputs of one feature
    deltas, inputs = (torch.stack(side) for side in zip(*layers, strict=True))
    step = whiten_blocks(deltas, inputs, rank=5, precision=precision)
    for i, (delta, x) in enumerate(layers):
        exact = [oracle.whitened(delta.double(), x.double(), range(257), 0.1)]
        allowed = 1e-6 if precision == "float64" else 1e-4
        assert_best(type(step)(*(part[i] for part in step)), exact, [range(257)], 5, tolerance=allowed)


@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
@pytest.mark.usefixtures("by_products", "no_eigenproblems", "divided")
def test_where_fp64_is_as_fast_a_step_in_fp32_has_digits_of_it(shape):
    deltas, inputs = tokens(*shape, dtype=torch.float32)
    deltas[3:40] = 0
    inputs[:, 5:] *= 1e-3
    exact = oracle.whitened(deltas.double(), inputs.double(), range(shape[1]), 0.1)
    step = whiten_blocks(deltas, inputs, rank=5, precision="float32")
    assert step.left.dtype == torch.float32
    assert_best(step, [exact], [range(shape[1])], 5, tolerance=1e-6)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("damping", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.usefixtures("by_products", "no_eigenproblems")
def test_what_is_hardly_damped_keeps_its_digits_in_fp64(damping, fast, request):
    if fast:
        request.getfixturevalue("divided")
    _, inputs = tokens(251, 307, 263)
    deltas = gaussian(251, 2, seed=5) @ gaussian(2, 307, seed=6)
    step = whiten_blocks(deltas, inputs, rank=5, damping=damping)
    exact = oracle.whitened(deltas, inputs, range(307), damping)
    assert_best(step, [exact], [range(307)], 5, tolerance=1e-5)


LEFT = {
    "few tokens": ((60, 257, 263), {}),
    "hardly damped": ((251, 257, 263), {"damping": 1e-5}),
    "a large rank": ((251, 257, 263), {"rank": 20}),
}


@pytest.mark.parametrize(("shape", "options"), LEFT.values(), ids=LEFT)
def test_what_products_resolve_badly_or_late_is_left_to_eigenproblems(shape, options, request):
    deltas, inputs = tokens(*shape, dtype=torch.float32)
    options = {"rank": 5, "precision": "float32"} | options
    expected = whiten_blocks(deltas, inputs, **options)
    request.getfixturevalue("by_products")
    assert all(map(torch.equal, whiten_blocks(deltas, inputs, **options), expected))


def test_where_the_whitened_gradient_is_flat_products_give_up(request):
    x = gaussian(251, 257)
    expected = whiten_blocks(x, x, rank=5)
    request.getfixturevalue("by_products")
    assert all(map(torch.equal, whiten_blocks(x, x, rank=5), expected))


@pytest.mark.usefixtures("by_products")
def test_one_flat_matrix_of_a_stack_leaves_the_others_to_products(monkeypatch):
    layers = [tokens(251, 257, 263, seed=10 * i) for i in range(3)]
    layers[1] = gaussian(251, 257), gaussian(251, 263, seed=1)
    deltas, inputs = (torch.stack(side) for side in zip(*layers, strict=True))
    alone = [whiten_blocks(*layer, rank=5) for layer in layers]
    sizes, solve = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: sizes.append(matrix.shape) or solve(matrix))
    step = whiten_blocks(deltas, inputs, rank=5)
    assert sum(shape[0] for shape in sizes if shape[-1] >= 251) == 3, "both sides and the core of one"
    for i, own in enumerate(alone):
        torch.testing.assert_close(step.left[i] @ step.right[i, 0], own.left @ own.right[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["deltas", "inputs"])
def test_a_value_that_is_not_finite_is_an_error_naming_the_tensor(name, backend):
    given_tokens = dict(zip(("deltas", "inputs"), tokens(9, 5, 7), strict=True))
    given_tokens[name][3, 4] = torch.nan
    with pytest.raises(LasertriError, match=f"NaN or Inf in `{name}`"):
        whiten_blocks(**given_tokens, rank=1, backend=backend)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": torch.ones(8, 7)}, r"tokens of deltas \[9, 5\].*got \[8, 7\]"),
        ({"inputs": torch.ones(2, 9, 7)}, r"got \[2, 9, 7\]"),
        ({"inputs": torch.ones(9, 7, dtype=torch.int64)}, "inputs in torch.float32.*got torch.int64"),
        ({"deltas": [1.0]}, "deltas in torch.float32.*got list"),
        ({"deltas": torch.ones(0, 5), "inputs": torch.ones(0, 7)}, r"deltas \[.*both positive, got \[0, 5\]"),
        ({"rank": 6}, "ranks from 0 to 5, got 6"),
        ({"rank": -1}, "ranks from 0 to 5, got -1"),
        ({"rank": [1]}, r"one rank, an integer, got \[1\]"),
        ({"blocks": 6}, "between 1 and 5 blocks"),
        ({"blocks": Partition((0, 4))}, "partition of 5 rows, got one of 4"),
        ({"damping": 0}, "a damping above 0, got 0"),
        ({"damping": float("nan")}, "a damping above 0, got nan"),
        ({"precision": "tf32"}, r"\['float64', 'float32'\], got 'tf32'"),
        ({"backend": "magma"}, "got 'magma'"),
    ],
)
def test_what_does_not_fit_is_an_error_saying_what_it_got(change, message):
    arguments = {"deltas": torch.ones(9, 5), "inputs": torch.ones(9, 7), "rank": 1} | change
    with pytest.raises(LasertriError, match=message):
        whiten_blocks(**arguments)


@pytest.mark.parametrize("blocks", [1, 2, Partition((0, 2, 5), torch.tensor([3, 0, 4, 2, 1]))], ids=["1", "2", "order"])
def test_of_moments_the_lower_triangle_alone_is_read(blocks, backend):
    deltas, inputs = tokens(9, 5, 7)
    grad, *both = moments(deltas, inputs)
    expected = whiten_moments(grad, *both, rank=2, blocks=blocks, backend=backend)
    lower = [moment.tril() + gaussian(*moment.shape).triu(1) for moment in both]
    found = whiten_moments(grad, *lower, rank=2, blocks=blocks, backend=backend)
    assert torch.allclose(found.sigma, expected.sigma, rtol=1e-12)


@pytest.mark.parametrize("name", ["outputs", "inputs"])
def test_moments_with_negative_squares_are_an_error(name, backend):
    given_moments = dict(zip(("grad", "outputs", "inputs"), moments(*tokens(9, 5, 7)), strict=True))
    given_moments[name] = -given_moments[name]
    with pytest.raises(LasertriError, match=f"second moment XᵀX as `{name}`, got negative squares"):
        whiten_moments(**given_moments, rank=1, backend=backend)


def test_moments_of_another_size_are_an_error():
    grad, b, c = torch.ones(5, 7), torch.eye(5), torch.eye(7)
    with pytest.raises(LasertriError, match=r"expected outputs \[5, 5\].*got \[7, 7\]"):
        whiten_moments(grad, c, c, rank=1)
    with pytest.raises(LasertriError, match=r"expected inputs \[7, 7\].*got \[5, 5\]"):
        whiten_moments(grad, b, b, rank=1)
