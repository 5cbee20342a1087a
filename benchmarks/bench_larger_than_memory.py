"""`lasertri compress` of a model larger than the memory it is given: `python -m benchmarks.bench_larger_than_memory`.

A random Llama is written to disk, and the command run on it, for plain and for whitened factors: once as it is, and
once with a limit on all of its memory, page cache too, that is below the model's size. What is recorded, if both
checkpoints are the same, byte for byte: the most memory that no file stands behind, which is what it needs, what was
read from disk, and the time. Rows that the record has are left out.

The limit is a control group's (version 1), which takes root; without it the needed memory must stay below the limit.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.edits.rows import Rows
from benchmarks.record import RESULTS, machine_record
from lasertri.data.neutral import neutral_text

GROUPS = Path("/sys/fs/cgroup/memory")
MIB = 1 << 20
KEY = ("factors", "layers", "width", "limit_MiB", "budget_MiB")
OPTIONS = ("--targets", "gate_proj|up_proj", "--keep", "0.8", "--no-progress", "--json", "--device", "cpu")
WIDER = 32  # times its width is the MLP's: many bytes, little work
WINDOW = 16  # tokens: what a backward pass keeps of them is to such a layer what 128 are to one of width 2048
CHARACTERS = 240  # of text: a token each


def main(
    layers: Annotated[int, typer.Option(help="Layers of the random Llama.")] = 40,
    width: Annotated[int, typer.Option(help="Its hidden size; the MLP is 32 times as wide.")] = 256,
    limit: Annotated[int, typer.Option(help="MiB that the command may have.")] = 640,
    budget: Annotated[int, typer.Option(help="Its --memory-budget, MiB.")] = 160,
    folder: Annotated[Path | None, typer.Option(help="On the disk to use; by default one for temporary files.")] = None,
    out: Annotated[Path, typer.Option(help="Record, one JSON row a line.")] = RESULTS
    / "bench_larger_than_memory.jsonl",
) -> None:
    """Measure, print and record."""
    rows = Rows(out, KEY)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        model = Path(place) / "model"
        size = round(make_model(model, layers, width) / MIB)
        asked = {"layers": layers, "width": width, "model_MiB": size, "limit_MiB": limit, "budget_MiB": budget}
        for factors in ("plain", "whitened"):
            row = {"factors": factors} | asked
            if row not in rows:
                machine, made = machine_record(), [Path(place) / f"{factors}-{name}" for name in ("free", "limited")]
                free = run(model, made[0], factors, budget, None)
                typer.echo(f"{factors}, no limit: {free}")
                limited = run(model, made[1], factors, budget, limit)
                typer.echo(f"{factors}, limited to {limit} MiB: {limited}")
                if checksum(made[0]) != checksum(made[1]):
                    raise SystemExit(f"{factors} factors under the limit are others than without it")
                rows.append(row | {"free": free, "limited": limited, "machine": machine})
            most = rows[row]["limited"]["anonymous_MiB"]
            if not most < limit < size:
                raise SystemExit(f"{most} MiB of memory were needed for a model of {size} MiB, limit {limit} MiB")


def make_model(folder: Path, layers: int, width: int) -> int:
    """Write a model and a tokenizer of bytes; returns the bytes of its weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=WIDER * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="256MB")
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=letters).save_pretrained(folder)
    (folder / "text.txt").write_text(neutral_text()[:CHARACTERS], encoding="utf-8")
    return sum(parameter.nbytes for parameter in model.parameters())


def run(model: Path, out: Path, factors: str, budget: int, allowed: int | None) -> dict[str, Any]:
    """What the command takes: MiB of anonymous memory at most, MiB read from disk, seconds; and how it was limited."""
    command = [sys.executable, "-m", "lasertri", "compress", str(model), "-o", str(out), "--factors", factors]
    command += [*OPTIONS, "--memory-budget", str(budget / 1024), "--text", str(model / "text.txt")]
    environment = os.environ | {"LASERTRI_CACHE": str(out.with_suffix(".cache")), "HF_HUB_OFFLINE": "1"}
    forget(model)
    peak = read = 0
    with group(allowed) as procs, tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        enter = None if procs is None else lambda: procs.write_text(str(os.getpid()))
        child = subprocess.Popen(command, env=environment, stdout=said, stderr=said, preexec_fn=enter)
        while child.poll() is None:
            status, io = (proc(child.pid, name) for name in ("status", "io"))
            peak, read = max(peak, field(status, "RssAnon") * 1024), max(read, field(io, "read_bytes"))
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"the command ended with {child.returncode}: {said.read()[-1000:]}")
    return {
        "anonymous_MiB": round(peak / MIB),
        "read_MiB": round(read / MIB),
        "seconds": round(seconds, 1),
        "enforced": procs is not None,
    }


@contextmanager
def group(allowed: int | None) -> Iterator[Path | None]:
    """A control group with so many MiB for all memory and no swap beside: where a process enters it, if it can be."""
    place = GROUPS / f"lasertri-{os.getpid()}"
    try:
        if allowed is None:
            raise OSError
        place.mkdir()
        for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
            (place / name).write_text(str(allowed * MIB))
    except OSError:
        yield None
        return
    try:
        yield place / "cgroup.procs"
    finally:
        place.rmdir()


def proc(pid: int, name: str) -> str:
    """A file of a process; nothing of one that has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def field(text: str, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", text)
    return int(found[1]) if found else 0


def forget(folder: Path) -> None:
    """Have the page cache drop what it has of these files, so that who reads them pays for them."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def checksum(folder: Path) -> str:
    """Of the weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    typer.run(main)
