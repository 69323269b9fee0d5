"""The head and the loss, forward and backward: chunked (`linear_cross_entropy`), plain, PyTorch's `F.cross_entropy`.

4,096 rows of width 576 and a vocabulary of 49,152, fp32. Time: the three take turns in one process, each ratio is the
median over the rounds. Memory: each in a process of its own, the most that it held above its inputs, the gradients
included. Every figure `x_vs_y` is ours divided by theirs: below 1 is better.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.held import megabytes
from tessera.ops.loss import cross_entropy, linear_cross_entropy

N_ROWS, WIDTH, N_VOCAB = 4096, 576, 49_152
QUICK = 1024, 128, 16_384
WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "chunked": linear_cross_entropy,
    "plain": lambda h, weight, targets: cross_entropy(h @ weight.T, targets),
    "torch": lambda h, weight, targets: F.cross_entropy(h @ weight.T, targets),
}


def inputs(n_rows: int, width: int, n_vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    h = torch.randn(n_rows, width, generator=random).requires_grad_()
    weight = torch.randn(n_vocab, width, generator=random).mul_(width**-0.5).requires_grad_()
    return h, weight, torch.randint(n_vocab, (n_rows,), generator=random)


def step(way: str, made: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Loss and gradients, which replace those of the step before."""
    h, weight, targets = made
    h.grad = weight.grad = None
    loss = WAYS[way](h, weight, targets)
    loss.backward()
    return loss.detach()


def times(size: tuple[int, int, int], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of each way, the first not counted."""
    made = inputs(*size)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds + 1):
        for way, seconds in found.items():
            start = time.perf_counter()
            step(way, made)
            seconds.append(time.perf_counter() - start)
    return {way: seconds[1:] for way, seconds in found.items()}


def memory(way: str, size: tuple[int, int, int]) -> float:
    """The most MB above the inputs, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loss", "--worker", way, *map(str, size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def memory_worker(way: str, *size: str) -> float:
    step(way, inputs(64, 64, 256))  # what libraries take at their first call is not of the step
    made = inputs(*map(int, size))
    before = megabytes("VmRSS")
    step(way, made)
    return megabytes("VmHWM") - before


def difference(size: tuple[int, int, int]) -> float:
    """The largest relative difference of loss and gradients, chunked to plain, each tensor by its norm."""
    made = inputs(*size)
    results = []
    for way in ("chunked", "plain"):
        loss = step(way, made)
        results.append([loss, *(x.grad.clone() for x in made[:2] if x.grad is not None)])
    return max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(*results, strict=True))


def measure(console: Console, *, quick: bool) -> dict[str, Any]:
    size, rounds = (QUICK, 3) if quick else ((N_ROWS, WIDTH, N_VOCAB), 5)
    taken = times(size, rounds)
    held = {way: memory(way, size) for way in WAYS}
    table = Table("way", "seconds", "most memory, MB", title=f"rows, width, vocabulary: {size}")
    for way in WAYS:
        table.add_row(way, f"{statistics.median(taken[way]):.3f}", f"{held[way]:.0f}")
    console.print(table)
    figures: dict[str, Any] = {"rows": size[0], "width": size[1], "vocabulary": size[2]}
    for peer in ("plain", "torch"):
        ratios = [ours / theirs for ours, theirs in zip(taken["chunked"], taken[peer], strict=True)]
        figures[f"time_vs_{peer}"] = round(statistics.median(ratios), 3)
        figures[f"memory_vs_{peer}"] = round(held["chunked"] / held[peer], 3)
    figures["seconds"] = round(statistics.median(taken["chunked"]), 3)
    figures["megabytes"] = round(held["chunked"])
    figures["difference"] = difference(QUICK)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller head, fewer rounds")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(memory_worker(*arguments.worker))
        return
    console = Console(stderr=arguments.json, width=120)
    figures = measure(console, quick=arguments.quick)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        console.print(f"{name:<20} {value}")


if __name__ == "__main__":
    main()
