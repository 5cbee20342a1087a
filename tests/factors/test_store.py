"""Factors are made once, together where shapes agree, kept within the budget, and found on disk the next time."""

import logging
import threading

import pytest
import torch
from faults import give_up_on, out_of_memory
from tiny import make_model, make_samples

from lasertri import adapt, block_svd, use_backend
from lasertri.errors import LasertriError, NotConvergedError, TooLittleMemoryError
from lasertri.factors.cache import FactorCache
from lasertri.factors.store import FactorStore
from lasertri.model.targets import find_targets
from lasertri.ops import project_blocks


@pytest.fixture
def counted(monkeypatch):
    """How many matrices were factored."""
    made = []

    def count(weight, **options):
        made.append(weight.shape[:-2].numel())
        return block_svd(weight, **options)

    monkeypatch.setattr("lasertri.factors.factoring.block_svd", count)
    return made


def test_what_auto_means_where_a_store_is_made_holds_in_threads_that_use_it(monkeypatch):
    """Autograd runs its hooks in a thread of its own on a GPU."""
    asked = []
    monkeypatch.setattr(
        "lasertri.factors.factoring.block_svd", lambda *a, backend, **o: asked.append(backend) or block_svd(*a, **o)
    )
    model = make_model("gptj")
    [target, *_] = find_targets(model)
    with use_backend("reference"):
        store = FactorStore(model, [target], [2], budget=1 << 30)
    thread = threading.Thread(target=store.of, args=(target, 2))
    thread.start()
    thread.join()
    assert store.backend == "reference"
    assert asked == ["reference"]


def weight_of(model, target):
    return target.view(target.parameter(model))


@pytest.mark.parametrize("architecture", ["gptj", "gpt2", "llama", "phi3", "qwen2_moe"])
def test_prepared_factors_are_those_made_one_by_one(architecture, counted):
    model = make_model(architecture)
    targets = find_targets(model)
    store = FactorStore(model, targets, [3], budget=1 << 30)
    store.prepare(targets, 3)
    assert sum(counted) == len(targets) > len(counted)
    for target in targets:
        found, exact = store.of(target, 3), block_svd(weight_of(model, target), blocks=3)
        assert found.basis.dtype == torch.float32
        torch.testing.assert_close(found.sigma, exact.sigma)
        for j, length in enumerate(exact.lengths):
            for k in (1, length // 2):
                old, new = (f.basis[j, :, :k].double() for f in (exact, found))
                torch.testing.assert_close(new @ new.mT, old @ old.mT, atol=1e-5, rtol=0)
    assert sum(counted) == len(targets)


def test_what_is_sent_to_other_processes_is_no_more_than_the_factors(monkeypatch):
    model = make_model("llama")
    targets, sent = find_targets(model, "up_proj|gate_proj"), []

    def shared(items, run):
        sent.append(run(items))
        return sent[-1:]

    monkeypatch.setattr("lasertri.factors.store.processes", lambda: 2)
    monkeypatch.setattr("lasertri.factors.store.shared", shared)
    FactorStore(model, targets, [1], budget=1 << 30).prepare(targets, 1)
    [made] = sent
    assert len(made) == len(targets) == 6
    for _, factors in made:
        assert all(side.untyped_storage().nbytes() == side.nbytes for side in (factors.basis, factors.sigma))


@pytest.mark.parametrize("room", [4, 1, 0])
def test_fewer_are_factored_at_once_where_memory_holds_no_more(monkeypatch, room):
    model, made = make_model("gptj"), []

    def factored(weight, **options):
        if weight.shape[:-2].numel() > room:
            raise out_of_memory()
        made.append(len(weight))
        return block_svd(weight, **options)

    targets = find_targets(model)
    store = FactorStore(model, targets, [3], budget=1 << 30)
    monkeypatch.setattr("lasertri.factors.factoring.block_svd", factored)
    if not room:
        with pytest.raises(TooLittleMemoryError, match="expected memory for the factors of one matrix"):
            store.prepare(targets, 3)
        return
    store.prepare(targets, 3)
    assert sum(made) == len(targets) > len(made) - (room == 1)
    for target in targets:
        assert torch.equal(store.of(target, 3).sigma, block_svd(weight_of(model, target), blocks=3).sigma)


@pytest.mark.parametrize("together", [True, False])
def test_a_weight_whose_eigensolver_gives_up_is_factored_by_an_svd(monkeypatch, together):
    model = make_model("gptj")
    targets = find_targets(model)
    expected = [block_svd(weight_of(model, target)) for target in targets]
    failed = give_up_on(monkeypatch, [weight_of(model, targets[1])], "eigh")
    store = FactorStore(model, targets, [1], budget=1 << 30)
    if together:
        store.prepare(targets, 1)
    for target, exact in zip(targets, expected, strict=True):
        found = store.of(target, 1)
        torch.testing.assert_close(found.sigma, exact.sigma)
        for k in (1, 8):
            old, new = (factors.basis[0, :, :k].double() for factors in (exact, found))
            torch.testing.assert_close(new @ new.mT, old @ old.mT, atol=1e-5, rtol=0)
    assert failed == ["eigh"] * (2 if together else 1)


def test_a_weight_that_no_solver_converges_on_is_left_out_with_a_warning(monkeypatch, caplog, counted):
    model = make_model("gptj")
    targets = find_targets(model)
    give_up_on(monkeypatch, [weight_of(model, targets[1])])
    store = FactorStore(model, targets, [1], budget=1 << 30)
    store.prepare(targets, 1)
    counted.clear()
    keys = [(target, 1, None) for target in targets]
    assert store.usable(keys) == [key for key in keys if key[0] != targets[1]]
    assert f"1 matrices are left out, {targets[1]} at K = 1 the first: no eigensolver and no SVD" in caplog.text
    for ask in (lambda: store.of(targets[1], 1), lambda: store.usable(keys[1:2])):
        with pytest.raises(NotConvergedError, match=rf"converges on {targets[1]}, K = 1; leave it out"):
            ask()
    assert counted == []  # what failed once is not tried again


def test_so_is_one_whose_clusters_none_converges_on(monkeypatch):
    model = make_model("gptj")
    [target, other, *_] = find_targets(model)
    store = FactorStore(model, [target], [2], budget=1 << 30)

    def giving_up(weight, **_):
        if torch.equal(weight, weight_of(model, target)):
            raise NotConvergedError("did not converge")
        return block_svd(weight, **_)

    monkeypatch.setattr("lasertri.factors.factoring.block_svd", giving_up)
    assert store.usable([(target, 2, 3), (other, 2, 3)]) == [(other, 2, 3)]


def test_what_is_not_kept_is_made_again_and_said_once(counted, caplog):
    model = make_model("gptj")
    target = find_targets(model)[0]
    store = FactorStore(model, [target], [1], budget=1 << 30)
    store.budget.free = 10
    with caplog.at_level(logging.WARNING):
        store.of(target, 1), store.of(target, 1)
    assert len(counted) == 2
    assert caplog.text.count("larger --memory-budget") == 1


def test_letting_go_gives_the_memory_back():
    model = make_model("gptj")
    first, second, *_ = find_targets(model)
    store = FactorStore(model, [first, second], [1], budget=1 << 30)
    free = store.budget.free
    for target in (first, second):
        store.projected(target, 1)
    assert store.budget.free == free - store.kept_bytes < free
    store.retain([(first, 1, None)])
    kept = store.kept_bytes
    assert 0 < kept == free - store.budget.free
    store.retain([])
    assert store.budget.free == free


@pytest.mark.parametrize(("rows", "columns", "blocks"), [(31, 7, 3), (40, 16, 1)])
@pytest.mark.parametrize("ordered", [False, True])
def test_projected_rows_are_in_their_places(rows, columns, blocks, ordered):
    from lasertri import Partition

    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(2)) if ordered else None
    offsets = Partition.consecutive(rows, blocks).offsets
    factors = block_svd(weight, blocks=Partition(offsets, order))
    projected = project_blocks(weight, factors)
    places = torch.arange(rows) if order is None else order
    for j in range(blocks):
        mine = places[offsets[j] : offsets[j + 1]]
        torch.testing.assert_close(projected[mine], weight[mine].double() @ factors.basis[j])


def test_a_second_task_on_the_same_model_factors_nothing(tokenizer, tmp_path, monkeypatch, counted):
    monkeypatch.setenv("LASERTRI_CACHE", str(tmp_path / "cache"))
    model, options = (
        make_model("gptj"),
        {"ratios": (0.5, 0.0), "blocks": (1, 3), "count": 6, "race": False, "progress": False},
    )
    first = adapt(model, make_samples(48), tokenizer=tokenizer, accept="best", **options)
    assert sum(counted) == 3 * 6  # K = 1 and 3, and 8 to rank the targets
    counted.clear()
    second = adapt(model, make_samples(48), tokenizer=tokenizer, accept="best", **options)
    assert counted == []
    assert torch.equal(first.edit.weight, second.edit.weight)
    for a, b in zip(first.rounds[0].trials, second.rounds[0].trials, strict=True):
        assert (a.candidate, a.measurement) == (b.candidate, b.measurement)
    result = adapt(model, make_samples(96)[48:], tokenizer=tokenizer, accept="best", **options)
    assert counted == []
    result.edit.apply(model)  # another weight is another key
    adapt(model, make_samples(48), tokenizer=tokenizer, accept="best", **options)
    assert sum(counted) == 3


def test_the_folder_can_be_switched_off(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LASERTRI_CACHE", "off")
    adapt(make_model("gptj"), make_samples(48), tokenizer=tokenizer, ratios=0.5, blocks=1, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral"])
def test_parts_of_one_parameter_are_known_apart_on_disk(tmp_path, counted, architecture):
    model = make_model(architecture)
    targets = [t for t in find_targets(model, ".") if t.rows or t.expert is not None]
    for expected in (len(targets), 0):
        store = FactorStore(model, targets, [2], budget=1 << 30, cache=FactorCache(tmp_path))
        counted.clear()
        for target in targets:
            exact = block_svd(weight_of(model, target), blocks=2)
            torch.testing.assert_close(store.of(target, 2).sigma, exact.sigma)
        assert sum(counted) == expected


def test_cached_factors_score_as_fresh_ones(tmp_path):
    model = make_model("llama")
    target = find_targets(model)[0]
    stores = [FactorStore(model, [target], [2], budget=1 << 30, cache=FactorCache(tmp_path)) for _ in range(2)]
    fresh, cached = (store.of(target, 2) for store in stores)
    assert torch.equal(fresh.basis, cached.basis)
    assert torch.equal(fresh.sigma, cached.sigma)


def test_whitened_factors_are_those_of_the_inputs_and_never_on_disk(tmp_path, counted):
    model = make_model("llama")
    targets, cache = find_targets(model), FactorCache(tmp_path)
    moments = {target: torch.diag(torch.arange(1.0, 1 + target.shape[1])).double() for target in targets}
    FactorStore(model, targets, [3], budget=1 << 30, cache=cache).prepare(targets, 3)
    stored = sorted(tmp_path.iterdir())
    assert len(stored) == len(targets)
    store = FactorStore(model, targets, [3], budget=1 << 30, cache=cache, inputs=moments.get)
    store.prepare(targets[:4], 3)
    for target in targets:
        found = store.of(target, 3)
        exact = block_svd(weight_of(model, target), blocks=3, inputs=moments[target])
        assert found.whitened
        torch.testing.assert_close(found.sigma, exact.sigma)
    assert sum(counted) == 2 * len(targets)
    assert sorted(tmp_path.iterdir()) == stored


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("std::bad_alloc"), OSError(28, "No space left on device")]
)
def test_what_cannot_be_written_aside_costs_no_factors(error, tmp_path, monkeypatch, caplog):
    def fails(*_):
        raise error

    monkeypatch.setattr("lasertri.factors.cache.replace_file", fails)
    model = make_model("gptj")
    targets = find_targets(model)
    store = FactorStore(model, targets, [2], budget=1 << 30, cache=FactorCache(tmp_path))
    store.prepare(targets, 2)
    assert len(store.usable((target, 2, None) for target in targets)) == len(targets)
    assert caplog.text.count("going on without") == 1


def test_an_error_of_the_writer_is_raised_once(tmp_path, monkeypatch):
    model = make_model("gptj")
    targets = find_targets(model)
    store = FactorStore(model, targets, [2], budget=1 << 30, cache=FactorCache(tmp_path))

    def fails(*_):
        raise LasertriError("expected another key")

    with monkeypatch.context() as patched:
        patched.setattr(FactorCache, "store", fails)
        with pytest.raises(LasertriError, match="another key"):
            store.prepare(targets, 2)
    store.prepare(targets, 2)


def test_no_more_than_so_much_is_on_its_way_to_disk(tmp_path, monkeypatch):
    """What is written has gone before more is made."""
    monkeypatch.setattr("lasertri.factors.factoring.WAITING", 0)
    model = make_model("gptj")
    targets = find_targets(model)
    waiting, store = [], FactorCache.store
    begun = []

    def watched(cache, key, factors):
        begun.append(key)
        waiting.append(len(begun) - len(list(tmp_path.glob("*.safetensors"))))
        store(cache, key, factors)

    monkeypatch.setattr(FactorCache, "store", watched)
    FactorStore(model, targets, [2], budget=1 << 30, cache=FactorCache(tmp_path)).prepare(targets, 2)
    assert waiting == [1] * len(targets)
