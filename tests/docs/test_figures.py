"""The tables of README and pages are what the records say."""

import json

import numpy as np
import pytest
import tensor_cores
from pages import ROOT

RESULTS = ROOT / "benchmarks/results"
TASKS = {
    "CounterFact": "counterfact",
    "antonyms": "antonyms",
    "English to French, words": "translation_en-fr",
    "larger animal": "larger_animal",
    "sentiment": "sentiment",
    "what is implied": "implicatures",
    "plausible sports": "sports_understanding",
    "TruthfulQA": "truthfulqa",
}
RECIPES = {
    "whitened, rank 64": "whitened",
    "whitened, rank 16": "whitened, rank 16",
    "whitened, the MLPs alone": "whitened, MLPs alone",
    "whitened, attention alone": "whitened, attention alone",
    "whitened on the side of the inputs alone": "whitened, inputs alone",
    "whitened on the side of the outputs alone": "whitened, outputs alone",
    "plain, rank 16": "plain",
}


def rows(name):
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


def steps(method, task, *, seeds=range(5), dtype="float32"):
    """A method's rows of a task."""
    wanted = [r for r in rows("bench_edits.jsonl") if (r["method"], r["task"], r["dtype"]) == (method, task, dtype)]
    return [row for row in wanted if row["seed"] in seeds]


def loss(figures):
    return figures["log_loss"] if figures["choice_log_loss"] is None else figures["choice_log_loss"]


def says(cell, found, when):
    """Whether a cell "50.6 %, 2.37" has the mean accuracy and log loss of these rows, to its last digits."""
    accuracy, nats = map(float, cell.replace(" %", "").split(", "))
    measured = 100 * np.mean([row[when]["accuracy"] for row in found]), np.mean([loss(row[when]) for row in found])
    return (accuracy, nats) == (pytest.approx(measured[0], abs=0.0501), pytest.approx(measured[1], abs=0.00501))


def table(page, title):
    """Cells of every row of the table with this title in its first line, by the row's name."""
    lines = iter((ROOT / page).read_text(encoding="utf-8").splitlines())
    assert any(line.startswith("|") and title in line for line in lines)
    next(lines)
    cells = {}
    for line in lines:
        if not line.startswith("|"):
            return cells
        name, *rest = (cell.strip().replace("*", "") for cell in line.strip("|").split("|"))
        cells[name.split(" (")[0].split(", two draws")[0]] = rest
    return cells


def gain(row):
    """In points."""
    return 100 * (row["held_out"]["accuracy"] - row["baseline"]["accuracy"])


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_what_a_step_gives_is_what_was_measured(page):
    found = table(page, "gains of the five draws")
    assert found.keys() == TASKS.keys()
    for name, (before, after, gains, *_) in found.items():
        measured = sorted(steps("step", TASKS[name]), key=lambda row: row["seed"])
        assert says(before, measured, "baseline")
        assert says(after, measured, "held_out")
        accepted = [gain(row) for row in measured if row["accepted"]]
        assert [int(part) for part in gains.split(", ") if "no edit" not in part] == pytest.approx(accepted, abs=0.501)
        assert ("no edit" in gains) == (len(accepted) < len(measured))


def test_the_shuffled_answers_are_those_of_the_first_draw():
    for name, (*_, shuffled) in table("docs/benchmarks.md", "answers shuffled").items():
        controls = [row for row in steps("step", TASKS[name], seeds=[0]) if row.get("control")]
        assert says(shuffled, controls, "control") if controls else shuffled == ""


def test_lora_is_measured_on_the_same_two_draws():
    methods = ("step", "lora", "lora-ga")
    for name, cells in table("docs/benchmarks.md", "LoRA fine-tuning").items():
        for cell, method in zip(cells, methods, strict=True):
            assert says(cell, steps(method, TASKS[name], seeds=(0, 1)), "held_out")


def test_a_step_of_the_mlps_beside_one_of_every_linear_layer():
    for name, (mlps, every) in table("docs/benchmarks.md", "a step of the MLPs").items():
        seeds = {row["seed"] for row in steps("step-all", TASKS[name])}
        assert says(mlps, steps("step", TASKS[name], seeds=seeds), "held_out")
        assert says(every, steps("step-all", TASKS[name]), "held_out")


def test_a_step_in_bf16():
    columns = ("step", "float32"), ("step", "bfloat16"), ("step-merged", "bfloat16")
    for name, cells in table("docs/serving.md", "BF16, merged").items():
        for cell, (method, dtype) in zip(cells, columns, strict=True):
            found = steps(method, TASKS[name], dtype=dtype)
            assert len(found) == (5 if cell else 0)
            assert not cell or says(cell, found, "held_out")


def test_where_it_is_close_bf16_may_decide_otherwise():
    close = ("sentiment", "implicatures", "sports_understanding", "truthfulqa")
    accepted = [
        {(task, row["seed"]) for task in close for row in steps("step", task, dtype=dtype) if row["accepted"]}
        for dtype in ("float32", "bfloat16")
    ]
    assert f"{len(set.symmetric_difference(*accepted))} draws of 20" in (ROOT / "docs/serving.md").read_text()
    hurt = [row for task in close for row in steps("step", task, dtype="bfloat16") if row["accepted"]]
    assert all(row["held_out"]["accuracy_interval"][1] > 0 for row in hurt)


@pytest.mark.parametrize(
    ("method", "low", "high", "pages"),
    [
        ("step", 7, 11, ["docs/benchmarks.md", "docs/faq.md"]),
        ("lora", 32, 38, ["docs/benchmarks.md", "docs/faq.md"]),
        ("lora-ga", 41, 47, ["docs/benchmarks.md"]),
    ],
)
def test_the_work_of_a_step_and_of_lora(method, low, high, pages):
    work = [row["forward_equivalents"] for task in TASKS.values() for row in steps(method, task)]
    assert (min(work), max(work)) == (low, high)
    for page in pages:
        assert f"{low} to {high}" in (ROOT / page).read_text(encoding="utf-8")


def test_one_draw_of_each_kind_of_edit():
    found = table("docs/edits.md", "accuracy")
    methods = {"`step`": "step", "`shrink`": "shrink", "eight of the samples in the prompt": "few-shot"}
    for name, method in methods.items():
        assert says(", ".join(found[name]), steps(method, "counterfact", seeds=[0]), "held_out")
    assert says(", ".join(found["the model as it is"]), steps("step", "counterfact", seeds=[0]), "baseline")


def test_a_truncation_beside_a_step_of_the_same_samples():
    for name, (before, *cells) in table("docs/benchmarks.md", "--edit truncate").items():
        for cell, method in zip(cells, ("truncate", "step"), strict=True):
            [row] = steps(method, TASKS[name], seeds=[0])
            assert says(before, [row], "baseline")
            told = f"no edit (p = {row['p_value']:.2f})"
            assert says(cell, [row], "held_out") if row["accepted"] else cell == told


def test_recipes_of_a_step():
    measured = {(row["task"], row["method"]): f"{row['loss']:.2f}" for row in rows("bench_directions.jsonl")}
    for name, cells in table("docs/benchmarks.md", "| recipe").items():
        tasks = ("translation_en-fr", "antonyms", "counterfact")
        assert cells == [measured.get((task, RECIPES[name]), "") for task in tasks]


def test_ranking_in_more_blocks_changed_no_decision():
    """`docs/method.md`."""
    found = {(r["task"], r["seed"], r["method"]): r for r in rows("bench_edits.jsonl") if "truncate" in r["method"]}
    draws = [key[:2] for key in found if key[2] == "truncate-16"]
    assert len(draws) == 10
    for method in ("truncate-16", "truncate-32"):
        lower = []
        for draw in draws:
            plain, other = found[*draw, "truncate"], found[*draw, method]
            for name in ("accuracy", "log_loss"):
                assert other["held_out"][name] == plain["held_out"][name]
            assert other["accepted"] == plain["accepted"]
            best, own = (max(trial["accuracy"] for trial in row["trials"]) for row in (plain, other))
            lower.append(round(100 * (best - own)))
        assert sorted(lower) == [0] * 6 + [2, 3, 3, 3]


def test_how_many_candidates_are_worth_a_trial():
    found, tasks = table("docs/benchmarks.md", "ruinous, of all"), TASKS.values()
    measured = {row["task"]: row for row in rows("bench_candidates.jsonl") if row["method"] == "truncate"}
    assert sorted(TASKS[name] for name in found) == sorted(task for task in tasks if task in measured)
    for name, (before, *winners, ruinous) in found.items():
        row = measured[TASKS[name]]
        figures = [row["held_out"], *row["winners"].values()]
        assert [before, *winners] == [f"{100 * each['accuracy']:.1f} %, {each['loss']:.2f}" for each in figures]
        trials = sorted(row["trials"], key=lambda trial: -trial["promise"])
        ruined = [trial["loss"] > row["baseline"]["loss"] + 0.5 for trial in trials]
        assert ruinous == f"{sum(ruined)} of {len(ruined)}"
        assert not any(ruined[:32])
    whitened = {row["task"]: row for row in rows("bench_candidates.jsonl") if row["method"] == "truncate, whitened"}
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    for task in ("counterfact", "antonyms"):
        winner = whitened[task]["winners"]["32"]
        assert f"{100 * winner['accuracy']:.1f} %, {winner['loss']:.2f}" in page.partition("whitened by the layers")[2]


def test_how_fast_a_start_of_pissa_is():
    record = json.loads((RESULTS / "bench_pissa.json").read_text(encoding="utf-8"))
    measured = {(" × ".join(map(str, row["shape"])), row["route"]): row for row in record["rows"]}
    for shape, (_, drawn, ours) in table("docs/benchmarks.md", "full SVD").items():
        for cell, route in ((drawn, "peft, pissa_niter_4"), (ours, "lasertri")):
            ratio, excess = map(float, cell.split(", "))
            row = measured[shape, route]
            assert (ratio, excess) == (
                pytest.approx(row["beside peft"], abs=0.00501),
                pytest.approx(row["excess"], rel=0.5),
            )


def test_how_fast_exact_and_large_a_start_of_corda_is():
    record = json.loads((RESULTS / "bench_corda.json").read_text(encoding="utf-8"))
    expected = {
        f"{row['method']}, {row['route']}": [
            *(f"{row[name]:.2f}".removesuffix(".00") for name in ("seconds beside peft", "peak beside peft")),
            " to ".join(f"{most(row['errors'].values()):.0e}".replace("e-0", "e-") for most in (min, max)),
        ]
        for row in record["rows"]
    }
    assert table("docs/benchmarks.md", "method and route") == expected


def test_what_a_model_larger_than_memory_takes():
    measured = rows("bench_larger_than_memory.jsonl")
    [(size, limit)] = {(row["model_MiB"], row["limit_MiB"]) for row in measured}
    found = table("docs/compress.md", f"| {size:,} MiB of weights")
    expected = {
        f"{row['factors']}, {name}": [f"{row[key][cell]:,.0f}" for cell in ("anonymous_MiB", "read_MiB", "seconds")]
        for row in measured
        for key, name in (("free", "no limit"), ("limited", f"{limit} MiB in all"))
    }
    assert found == expected


def test_kernels_are_compiled_in_as_many_ways_as_the_page_says():
    record = json.loads((RESULTS / "kernel_resources.json").read_text(encoding="utf-8"))
    assert f"in {record['specialisations']:,} ways" in (ROOT / "docs/extension.md").read_text(encoding="utf-8")
    assert record["faulty"] == 0


def test_what_tensor_cores_lose_is_what_the_model_says():
    found = table("docs/extension.md", "| terms")
    names = {"`tf32`": "tf32", "`tf32x3`": "tf32x3", "products of BF16 values": "half"}
    assert found.keys() == names.keys()
    for name, cells in found.items():
        assert cells == [f"{tensor_cores.error(names[name], terms):.0e}" for terms in (32, 128, 512, 1024, 4096)]
