"""Compile every kernel as it ships, for GPUs that need not be there, and read off what each takes of one.

python benchmarks/kernel_resources.py
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
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
from lasertri.ops.kernels.tiles import arithmetic, largest_tiles

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # what one program may have of a multiprocessor's shared memory
REGISTERS = 255  # of one thread
POINTER = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
SHORT = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TENSOR_CORE = re.compile(r"^\s*(?:@\S+\s+)?(wgmma\.mma_async|mma\.sync)\S*", re.MULTILINE)
USES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Row:
    kernel: str
    weight: str  # type of what is read
    arithmetic: str
    capability: int
    tiles: str  # rows x columns x inner, warps, stages
    registers: int
    spilled: int  # bytes of one thread in local memory
    shared: int  # bytes of one program
    tensor_core: str  # instruction, or "" for none

    @property
    def faults(self) -> list[str]:
        """What keeps this one from being shipped."""
        faults = []
        if self.spilled:
            faults.append(f"spills {self.spilled} bytes")
        if self.shared > SHARED_BYTES[self.capability]:
            faults.append("shared memory beyond the multiprocessor's")
        if self.registers > REGISTERS or self.registers * 32 * int(self.tiles.split()[1]) > 65536:
            faults.append("registers beyond the multiprocessor's")
        if (self.arithmetic != "ieee") != bool(self.tensor_core):
            faults.append("tensor cores used where not meant" if self.tensor_core else "no tensor cores")
        return faults


Case = tuple[str, torch.dtype, torch.dtype, str, Callable[..., Launch]]


def cases() -> Iterator[Case]:
    """Kernel, type read, type multiplied, precision, launch: every combination the backend may ask for."""
    half, single, double = torch.bfloat16, torch.float32, torch.float64

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    for read in (half, torch.float16, single, double):
        factors = functools.partial(empty, dtype=double)
        a, stack = empty(4, 1024, 4096, dtype=read), empty(9, 4, 1024, 4096, dtype=read)
        q, z = factors(4, 1024, 1024), factors(4, 1024, 4096)
        yield "gram", read, double, "ieee", functools.partial(gram.launch, a)
        yield "diagonal", read, double, "ieee", functools.partial(diagonal.launch, q, a, z.mT)
        yield (
            "prefix_product",
            read,
            double,
            "ieee",
            functools.partial(prefix_product.launch, q, z, range(100, 1000, 100), stack),
        )
        s, out = factors(4, 1024), empty(4, 1024, 4096, dtype=read)
        yield "scaled_product", read, double, "ieee", functools.partial(scaled_product.launch, q, s, z, a, out)
        if read == double:
            continue
        q, z, bias = q.float(), z.float(), empty(4, 4096, dtype=read)
        for precision in ("ieee", "tf32x3", "tf32"):
            if read == single:
                yield "gram", read, single, precision, functools.partial(gram.launch, a)
            yield "diagonal", read, single, precision, functools.partial(diagonal.launch, q, a, z.mT)
            yield (
                "prefix_product",
                read,
                single,
                precision,
                functools.partial(prefix_product.launch, q, z, range(100, 1000, 100), stack, bias),
            )
            yield "scaled_product", read, single, precision, functools.partial(scaled_product.launch, q, s, z, a, out)
        if read != single:
            yield "gram", read, read, "ieee", functools.partial(gram.launch, a)


def fewest(every: Iterable[Case]) -> Iterator[Case]:
    """The first cases that together have each kernel and each arithmetic."""
    seen: set[str] = set()
    for kernel, read, compute, precision, make in every:
        if not {kernel, arithmetic(compute, precision)} <= seen:
            seen |= {kernel, arithmetic(compute, precision)}
            yield kernel, read, compute, precision, make


def compiled(launch: Launch, capability: int) -> triton.compiler.CompiledKernel:
    """The kernel as a launch on such a device would compile it, integers divisible by 16 and ones included."""
    names = launch.kernel.arg_names
    signature, constants, aligned = {}, dict(launch.constants), {}
    for place, name in enumerate(names):
        value = launch.arguments.get(name)
        if isinstance(value, Tensor):
            signature[name] = POINTER.get(value.dtype, "*i32")
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


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and its bytes of stack and local memory."""
    tool = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, _, local = map(int, USES.search(printed).groups())
    return registers, stack + local


def measure(capability: int, chosen: Iterable[Case]) -> Iterator[Row]:
    for kernel, read, compute, precision, make in chosen:
        tiles = largest_tiles(compute, precision, divmod(capability, 10))
        launch = make(compute=compute, precision=precision, tiles=tiles)
        binary = compiled(launch, capability)
        registers, spilled = resources(binary.asm["cubin"])
        used = sorted({match.group(0).split()[-1] for match in TENSOR_CORE.finditer(binary.asm["ptx"])})
        yield Row(
            kernel=kernel,
            weight=SHORT[read],
            arithmetic=arithmetic(compute, precision),
            capability=capability,
            tiles=f"{tiles.rows}x{tiles.columns}x{tiles.inner} {tiles.warps} {tiles.stages}",
            registers=registers,
            spilled=spilled,
            shared=binary.metadata.shared,
            tensor_core=", ".join(used),
        )


def main(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only each kernel and each arithmetic once.")] = False,
) -> None:
    print("{:15} {:5} {:8} {:>5} {:>16} {:>5} {:>5} {:>7}  {}".format(*Row.__dataclass_fields__))
    rows = []
    for capability in SHARED_BYTES:
        for row in measure(capability, fewest(cases()) if quick else cases()):
            rows.append(row)
            print(
                f"{row.kernel:15} {row.weight:5} {row.arithmetic:8} sm_{row.capability} {row.tiles:>16} "
                f"{row.registers:5} {row.spilled:5} {row.shared:7}  {row.tensor_core} {'; '.join(row.faults).upper()}",
                flush=True,
            )
    faulty = sum(bool(row.faults) for row in rows)
    path = write_record("kernel_resources", {"faulty": faulty, "rows": [asdict(row) for row in rows]}, output)
    print(f"{len(rows)} kernels, {faulty} with a fault; written to {path}")
    sys.exit(1 if faulty else 0)


if __name__ == "__main__":
    typer.run(main)
