"""Compile every kernel for GPUs that need not be there, as every call may have it, and read off what each takes of one.

python benchmarks/kernel_resources.py

Triton compiles a kernel anew for sizes and strides that are 1, divisible by 16 or beyond 32 bits, and for pointers that
are aligned or not. The record has, for each kernel, arithmetic and GPU, the worst of all of these. Triton keeps what it
compiled, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import triton
import typer
from record import write_record
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lasertri.ops.kernels import diagonal, gram, prefix_product, scaled_product
from lasertri.ops.kernels.launch import Launch
from lasertri.ops.kernels.tiles import Tiles, arithmetic, largest_tiles
from lasertri.ops.triton import halves_fp64

# What one program may have of a multiprocessor's shared memory, by compute capability (CUDA C++ Programming Guide,
# "Technical Specifications per Compute Capability").
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
REGISTERS = 255  # of one thread
TENSOR_MEMORY = 512  # columns that one program may have
FP64_TENSOR_CORES = (80, 90)  # those whose tensor cores multiply FP64 faster than their other units do
POINTER = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
SHORT = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TENSOR_CORE = re.compile(r"\b(?:[DHI]MMA|HGMMA|UTC\w*MMA)[.\w]*")  # in SASS
LOCAL_MEMORY = re.compile(r"\b(?:STL|LDL)\b")
USES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
FAR = 2**31 + 17  # an integer of 64 bits, not divisible by 16

KINDS = {
    "aligned": "sizes, strides and pointers divisible by 16",
    "sliced": "strides and pointers, not sizes",
    "odd": "none of them",
    "one": "odd, one block and one rank",
    "strided": "odd, no stride of 1",
    "far": "odd, blocks further apart than 32 bits reach",
    "huge": "odd, columns and all strides beyond 32 bits",
}
# Tiles as a large problem has them, and as problems that are small in every dimension, in rows, in columns have them.
FITS = {"": (4096, 4096, 4096), "small": (16, 16, 16), "flat": (16, 4096, 4096), "thin": (4096, 16, 4096)}


@dataclass(frozen=True)
class Case:
    """One specialisation of a kernel, on no data."""

    kernel: str
    read: torch.dtype
    compute: torch.dtype
    precision: str
    kind: str
    turned: str  # for each operand "r" where its rows are contiguous, "c" its columns
    fit: str
    make: Callable[..., Launch]

    @property
    def name(self) -> str:
        return " ".join(filter(None, (SHORT[self.read], self.kind, self.turned, self.fit)))


@dataclass(frozen=True)
class Found:
    """What the compiler made of it."""

    kernel: str
    arithmetic: str
    capability: int
    name: str
    tiles: str
    registers: int
    spilled: int  # bytes of one thread in local memory, a fault where it has no more registers
    shared: int  # bytes of one program
    instructions: dict[str, int]  # tensor-core instructions in SASS
    faults: list[str]  # what keeps it from being shipped


def cases() -> Iterator[Case]:
    """Every combination the backend may ask for, and "ieee" and "tf32", which it never asks for, of FP32."""
    half, single, double = (torch.bfloat16, torch.float16), torch.float32, torch.float64
    for read in (*half, single, double):
        yield from _kernels(read, double, "ieee")
        if read != double:
            yield from _kernels(read, single, "tf32x3")
        if read in half:
            yield from _of_gram(read, read, "ieee")
    for precision in ("ieee", "tf32"):
        yield from _kernels(single, single, precision)


def _kernels(read: torch.dtype, compute: torch.dtype, precision: str) -> Iterator[Case]:
    if compute == torch.float64 or read == torch.float32:
        yield from _of_gram(read, compute, precision)
    yield from _of_diagonal(read, compute, precision)
    yield from _of_prefix_product(read, compute, precision)
    yield from _of_scaled_product(read, compute, precision)


def _variants(
    read: torch.dtype, compute: torch.dtype, precision: str, turned: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """Kind, turned and fit. BF16 has all; other types differ from it by a conversion, and have those that took most."""
    asked = precision == "tf32x3" or compute != torch.float32
    if read == torch.bfloat16:
        yield from ((kind, each, "") for kind in ("aligned", "odd") for each in turned)
        yield from ((kind, turned[0], "") for kind in KINDS if kind not in ("aligned", "odd"))
        yield from (("aligned", turned[0], fit) for fit in FITS if fit)
    else:
        yield "aligned", turned[0], ""
        yield from (("odd", each, "") for each in (turned if read == torch.float32 and asked else turned[:1]))


def _of_gram(read: torch.dtype, compute: torch.dtype, precision: str) -> Iterator[Case]:
    for kind, turned, fit in _variants(read, compute, precision, ("r", "c")):
        batch, rows, columns, _ = _sizes(kind)
        matrix = operand((batch, rows, columns), read, kind, turned)
        make = functools.partial(gram.launch, matrix)
        yield Case("gram", read, compute, precision, kind, turned, fit, make)


def _of_diagonal(read: torch.dtype, compute: torch.dtype, precision: str) -> Iterator[Case]:
    """Of (basis, gradient, coordinatesᵀ), and of (basis, contracted, basis)."""
    for kind, turned, fit in _variants(read, compute, precision, ("rrc", "crc", "rcc", "ccc", "rrr")):
        batch, rows, columns, _ = _sizes(kind)
        left = operand((batch, rows, rows), compute, kind, turned[0])
        matrix = operand((batch, rows, columns), read, kind, turned[1])
        right = operand((batch, columns, rows), compute, kind, turned[2])
        make = functools.partial(diagonal.launch, left, matrix, right)
        yield Case("diagonal", read, compute, precision, kind, turned, fit, make)


def _of_prefix_product(read: torch.dtype, compute: torch.dtype, precision: str) -> Iterator[Case]:
    """Truncations without a bias; a layer's outputs with one (a fourth letter)."""
    for kind, turned, fit in _variants(read, compute, precision, ("rrrr", "rcrr", "rrr", "crr", "rrc", "crc", "rcr")):
        batch, rows, columns, ranks = _sizes(kind)
        left = operand((batch, rows, rows), compute, kind, turned[0])
        right = operand((batch, rows, columns), compute, kind, turned[1])
        out = operand((len(ranks), batch, rows, columns), read, kind, turned[2])
        bias = operand((batch, 1, columns), read, kind, "r")[:, 0] if len(turned) == 4 else None
        make = functools.partial(prefix_product.launch, left, right, ranks, out, bias)
        yield Case("prefix_product", read, compute, precision, kind, turned, fit, make)


def _of_scaled_product(read: torch.dtype, compute: torch.dtype, precision: str) -> Iterator[Case]:
    """Base and output may lie differently: the output's rows (or columns, of a tall block) are contiguous."""
    for kind, turned, fit in _variants(read, compute, precision, ("rrrr", "rrcr", "rrrc", "rrcc", "crrc", "crcr")):
        batch, rows, columns, _ = _sizes(kind)
        left = operand((batch, rows, rows), compute, kind, turned[0])
        scale = operand((batch, 1, rows), torch.float64, kind, "r")[:, 0]
        right = operand((batch, rows, columns), compute, kind, turned[1])
        base, out = (operand((batch, rows, columns), read, kind, turn) for turn in turned[2:])
        make = functools.partial(scaled_product.launch, left, scale, right, base, out)
        yield Case("scaled_product", read, compute, precision, kind, turned, fit, make)


def _sizes(kind: str) -> tuple[int, int, int, list[int]]:
    """Blocks, their rows and columns, and ranks."""
    if kind == "aligned":
        return 16, 1024, 4096, list(range(16, 272, 16))
    if kind == "one":
        return 1, 1023, 4095, [500]
    return 3, 1023, FAR if kind == "huge" else 4095, [100, 500, 900]


def operand(shape: tuple[int, ...], dtype: torch.dtype, kind: str, turned: str) -> Tensor:
    """A tensor without data, laid out so."""
    *leading, rows, columns = shape
    if kind == "sliced":
        return operand((*leading, rows + 1, columns + 1), dtype, "aligned", turned)[..., :-1, :-1]
    row, column = (columns, 1) if turned == "r" else (1, rows)
    if kind == "strided":
        row, column = 2 * row, 2 * column
    if kind == "huge":
        row, column = (FAR, FAR + 2)
    strides, apart = [row, column], 2 * rows * columns if kind == "strided" else rows * columns
    if kind in ("far", "huge"):
        apart = max(apart, FAR)
    for size in reversed(leading):
        strides.insert(0, apart)
        apart *= size
    offset = 0 if kind in ("aligned", "sliced") else 1
    return torch.empty_strided((2, *shape), (1, *strides), dtype=dtype, device="meta")[offset]


def fewest(every: Iterable[Case]) -> Iterator[Case]:
    """The first cases that together have each kernel and each arithmetic."""
    seen: set[str] = set()
    for case in every:
        has = {case.kernel, arithmetic(case.compute, case.precision)}
        if not has <= seen:
            seen |= has
            yield case


def compiled(launch: Launch, capability: int) -> triton.compiler.CompiledKernel:
    """The kernel as a launch on such a device would compile it."""
    names = launch.kernel.arg_names
    signature, constants, aligned = {}, dict(launch.constants), {}
    for place, name in enumerate(names):
        value = launch.arguments.get(name)
        if isinstance(value, Tensor):
            signature[name] = POINTER.get(value.dtype, "*i32")
            if value.storage_offset() * value.itemsize % 16 == 0:
                aligned[place,] = [["tt.divisibility", 16]]
        elif value is None or value == 1:
            signature[name] = "constexpr"
            constants.setdefault(name, value)
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                aligned[place,] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=launch.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    options = {"num_warps": launch.tiles.warps, "num_stages": launch.tiles.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(cubin: bytes) -> tuple[int, int, dict[str, int]]:
    """Registers of a thread, its bytes of stack and local memory, and the tensor-core instructions."""
    tools = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def printed(*command: str | Path) -> str:
            return subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout

        registers, stack, _, local = map(
            int, USES.search(printed(tools / "cuobjdump", "--dump-resource-usage")).groups()
        )
        code = printed(tools / "nvdisasm", "-c")
    spilled = stack + local if LOCAL_MEMORY.search(code) else 0  # a stack that nothing is stored to costs nothing
    return registers, spilled, dict(sorted(Counter(TENSOR_CORE.findall(code)).items()))


def _tiles(case: Case, capability: int) -> Tiles:
    return largest_tiles(case.compute, case.precision, divmod(capability, 10), aligned=case.kind == "aligned")


def tiles_of(case: Case, capability: int) -> str:
    """The table's, as the record has them: rows x columns x inner, warps, stages."""
    tiles = _tiles(case, capability)
    return f"{tiles.rows}x{tiles.columns}x{tiles.inner} {tiles.warps} {tiles.stages}"


def examined(case: Case, capability: int) -> Found:
    tiles = _tiles(case, capability).fitted(*FITS[case.fit])
    name = arithmetic(case.compute, case.precision)
    known = (case.kernel, name, capability, case.name, tiles_of(case, capability))
    try:
        binary = compiled(case.make(compute=case.compute, precision=case.precision, tiles=tiles), capability)
    except Exception as error:  # what cannot be compiled raises many kinds
        return Found(*known, 0, 0, 0, {}, [f"does not compile: {type(error).__name__}"])
    registers, spilled, instructions = resources(binary.asm["cubin"])
    shared = binary.metadata.shared
    faults = []
    if spilled and registers == REGISTERS:  # at fewer it is the assembler's own choice, for more programs at once
        faults.append(f"spills {spilled} bytes")
    if shared > SHARED_KIB[capability] * 1024:
        faults.append("shared memory beyond the multiprocessor's")
    if registers > REGISTERS or registers * 32 * tiles.warps > 65536:
        faults.append("registers beyond the multiprocessor's")
    if getattr(binary.metadata, "tmem_size", 0) > TENSOR_MEMORY:
        faults.append("tensor memory beyond the multiprocessor's")
    if name == "ieee" and instructions:
        faults.append("tensor cores used where not meant")
    if name != "ieee" and not instructions and (name != "float64" or capability in FP64_TENSOR_CORES):
        faults.append("no tensor cores")
    if name == "float64" and capability == 90:
        whole = set(instructions) == {"DMMA.16x8x16"}
        if whole == halves_fp64((9, 0)):
            faults.append("FP64 tensor cores other than the backend takes them for")
    return Found(*known, registers, spilled, shared, instructions, faults)


def summary(found: Iterable[Found]) -> Iterator[dict[str, object]]:
    """One row for each kernel, arithmetic and GPU: the most that any specialisation takes, and which."""
    groups: dict[tuple[str, str, int], list[Found]] = {}
    for each in found:
        groups.setdefault((each.kernel, each.arithmetic, each.capability), []).append(each)
    for (kernel, name, capability), group in groups.items():
        worst = max(group, key=lambda each: (len(each.faults), each.spilled, each.registers))
        counts = Counter[str]()
        for each in group:
            counts |= Counter(each.instructions)
        yield {
            "kernel": kernel,
            "arithmetic": name,
            "capability": capability,
            "tiles": list(dict.fromkeys(each.tiles for each in group)),
            "specialisations": len(group),
            "worst": worst.name,
            "registers": max(each.registers for each in group),
            "spilled": max(each.spilled for each in group),
            "shared": max(each.shared for each in group),
            "tensor_core": ", ".join(f"{count} {name}" for name, count in sorted(counts.items())),
            "faulty": sum(bool(each.faults) for each in group),
        }


@functools.cache
def _all(quick: bool) -> list[Case]:
    return list(fewest(cases())) if quick else list(cases())


def _examined(quick: bool, place: int, capability: int) -> Found:
    return examined(_all(quick)[place], capability)


def main(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only each kernel and each arithmetic once.")] = False,
    capability: Annotated[list[int] | None, typer.Option(help="Only these, such as 90 for sm_90.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = min(2, os.cpu_count() or 1),
) -> None:
    places = range(len(_all(quick)))
    work = [(quick, place, each) for each in capability or SHARED_KIB for place in places]
    found = []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for each in pool.map(_examined, *zip(*work, strict=True), chunksize=4):
            found.append(each)
            if each.faults:
                print(f"sm_{each.capability} {each.kernel} {each.arithmetic} {each.name}: {each.faults}", flush=True)
            if len(found) % 100 == 0:
                print(f"{len(found)} of {len(work)}", flush=True)
    rows = list(summary(found))
    line = "{:15} {:8} {:>4} {:>30} {:>3} {:18} {:>3} {:>3} {:>6} {} {}"
    print(line.format("kernel", "products", "sm", "tiles", "of", "worst", "reg", "sp.", "shared", "tensor cores", ""))
    for row in rows:
        print(line.format(*(", ".join(value) if isinstance(value, list) else value for value in row.values())))
    faulty = sum(bool(each.faults) for each in found)
    path = write_record("kernel_resources", {"specialisations": len(found), "faulty": faulty, "rows": rows}, output)
    print(f"{len(found)} kernels compiled by Triton {triton.__version__}, {faulty} with a fault; written to {path}")
    sys.exit(1 if faulty else 0)


if __name__ == "__main__":
    typer.run(main)
