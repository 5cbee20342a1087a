"""Time the kernels' tile sizes on the GPU at hand, and print the best for `lasertri/ops/kernels/tiles.py`.

python benchmarks/tune_kernels.py
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import torch
import typer
from record import write_record
from triton.testing import do_bench

from lasertri.ops.kernels import diagonal, gram, prefix_product
from lasertri.ops.kernels.tiles import Tiles, largest_tiles

SIDES, INNER, WARPS, STAGES = (32, 64, 128), (16, 32, 64), (4, 8), (3,)
ARITHMETIC = {
    "float64": (torch.float64, "ieee"),
    "ieee": (torch.float32, "ieee"),
    "tf32x3": (torch.float32, "tf32x3"),
    "tf32": (torch.float32, "tf32"),
    "half": (torch.bfloat16, "ieee"),
}


def launches(compute: torch.dtype, precision: str, tiles: Tiles):
    """One of each kernel at eight blocks of GPT-J's height 512."""
    generator = torch.Generator("cuda").manual_seed(0)
    a = torch.randn(8, 512, 4096, generator=generator, device="cuda").bfloat16()
    sums = torch.float64 if compute == torch.float64 else torch.float32
    q, z = torch.randn(8, 512, 512, device="cuda", dtype=sums), torch.randn(8, 512, 4096, device="cuda", dtype=sums)
    stack = torch.empty(3, 8, 512, 4096, device="cuda", dtype=torch.bfloat16)
    options = {"compute": compute, "precision": precision, "tiles": tiles}
    yield "gram", gram.launch(a, **options)
    yield "diagonal", diagonal.launch(q, a, z.mT, **options)
    yield "prefix_product", prefix_product.launch(q, z, [50, 250, 450], stack, **options)


def main() -> None:
    if not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no CUDA device; tiles can only be timed on one")
    best = {}
    for name, (compute, precision) in ARITHMETIC.items():
        times: dict[Tiles, dict[str, float]] = defaultdict(dict)
        for rows, columns, inner, warps, stages in itertools.product(SIDES, SIDES, INNER, WARPS, STAGES):
            if rows * columns > 128 * 64 and name in ("float64", "ieee"):
                continue  # sums that no register file holds
            tiles = Tiles(rows, columns, inner, warps, stages)
            for kernel, launch in launches(compute, precision, tiles):
                try:
                    times[tiles][kernel] = do_bench(launch.run, warmup=5, rep=20)
                except Exception as error:  # tiles that cannot be compiled or launched raise many kinds
                    print(f"{name} {kernel} {tiles}: {type(error).__name__}", flush=True)
                    times[tiles][kernel] = math.inf
        now = times[largest_tiles(compute, precision, torch.cuda.get_device_capability())]
        score = {t: math.prod(ms / now[k] for k, ms in each.items()) ** (1 / len(each)) for t, each in times.items()}
        tiles = min(score, key=score.__getitem__)
        best[name] = {"tiles": vars(tiles), "time_over_the_present": score[tiles], "milliseconds": times[tiles]}
        print(f"{name:8} {tiles}: {score[tiles]:.2f} of the time of the present tiles", flush=True)
    print(f"written to {write_record('tune_kernels', {'best': best})}")


if __name__ == "__main__":
    typer.run(main)
