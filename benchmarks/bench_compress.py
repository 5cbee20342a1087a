"""What `compress` costs a model, whitened factors beside plain ones: `python -m benchmarks.bench_compress --model DIR`.

One budget over all MLP matrices is spent for each kind of factors and share of bytes, and a row appended: mean KL to
the model as it was, perplexity on text that neither saw, and with --data accuracy on CounterFact. Rows that the record
has are left out: a run goes on where it stopped. The text is the package's neutral one, one of your own (--text), or
what the model itself writes (--sampled), which is nearer to what a small model has seen.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.edits.rows import Row, Rows
from benchmarks.edits.tasks import TASKS
from benchmarks.record import RESULTS, machine_record
from lasertri import compress, load_model, load_tokenizer
from lasertri.data.neutral import neutral_text
from lasertri.data.sample import Sample
from lasertri.language.samples import EncodedSamples
from lasertri.measure.evaluate import evaluate

KEY = ("model", "text", "factors", "keep", "dtype")
FACTORS = ("plain", "whitened")


def main(
    model: Annotated[Path, typer.Option(help="Folder of a causal language model.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the tasks, see benchmarks/edits/tasks.py.")] = None,
    text: Annotated[Path | None, typer.Option(help="File of another text than the package's neutral one.")] = None,
    sampled: Annotated[int, typer.Option(help="Tokens of text that the model writes; 0: the neutral text.")] = 0,
    keeps: Annotated[str, typer.Option(help="Shares of the MLP matrices' bytes.")] = "0.9,0.8,0.6,0.4",
    prompts: Annotated[int, typer.Option(help="CounterFact prompts to answer.")] = 300,
    dtype: Annotated[str, typer.Option(help="The model is loaded in: float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    out: Annotated[Path, typer.Option(help="Record, one JSON row a line.")] = RESULTS / "bench_compress.jsonl",
) -> None:
    """Measure, print and record what the record lacks."""
    torch.set_num_threads(threads)
    loaded, tokenizer, rows = load_model(model, dtype=dtype, device="cpu"), load_tokenizer(model), Rows(out, KEY)
    asked = [] if data is None else TASKS["counterfact"].samples(data)[:prompts]
    base = accuracy(loaded, tokenizer, asked)
    if sampled:
        name, words = f"sampled {sampled}", written(loaded, tokenizer, sampled)
    else:
        name, words = ("neutral", neutral_text()) if text is None else (text.name, text.read_text(encoding="utf-8"))
    for keep in map(float, keeps.split(",")):
        for factors in FACTORS:
            row: Row = {
                "model": model.name,
                "text": name,
                "factors": factors,
                "keep": keep,
                "dtype": dtype,
            }
            if row not in rows:
                smaller = copy.deepcopy(loaded)
                start = time.perf_counter()
                report = compress(smaller, tokenizer, keep=keep, factors=factors, text=words, progress=False)
                seconds = time.perf_counter() - start
                found = {
                    "factored": report.count,
                    "matrices": len(report.matrices),
                    "bytes": report.bytes,
                    "side_effects": report.side_effects.to_dict() if report.side_effects else None,
                    "counterfact": {"n": len(asked), "before": base, "after": accuracy(smaller, tokenizer, asked)},
                    "seconds": round(seconds, 1),
                }
                rows.append(row | found | {"machine": machine_record()})
            typer.echo(line(rows[row]))


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]) -> float | None:
    """Share of the samples answered rightly, if there are any."""
    if not samples:
        return None
    return evaluate(model, EncodedSamples(samples, model=model, tokenizer=tokenizer)).accuracy


def written(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    """What the model writes from nothing, seeded, in texts of 200 tokens."""
    torch.manual_seed(0)
    start = torch.full((-(-tokens // 200), 1), tokenizer.bos_token_id)
    texts = model.generate(start, max_new_tokens=200, do_sample=True, pad_token_id=tokenizer.eos_token_id)
    return "\n\n".join(tokenizer.batch_decode(texts, skip_special_tokens=True))


def line(row: Row) -> str:
    """A row as text."""
    effects, task = row["side_effects"], row["counterfact"]
    before, after = effects["perplexity"].values()
    shown = f"{row['model']} {row['text']} keep {row['keep']} {row['factors']:8} KL {effects['kl']:.3f}"
    answered = "" if task["after"] is None else f" CounterFact {task['before']:.1%} -> {task['after']:.1%}"
    return f"{shown} perplexity {before:.4g} -> {after:.4g}{answered} {row['seconds']} s"


if __name__ == "__main__":
    typer.run(main)
