"""A training step of Tessera beside nanoGPT's model and transformers' GPT-2 and Llama, on the same work.

S is GPT's kind (6 layers, 384 wide, 6 heads, context 256, batch 16, vocabulary 65, head tied to the embedding), M is
Llama's (8 layers, 512 wide, 8 heads, batch 8 x 256, vocabulary 8,192). All begin from the same weights and learn the
same batches: forward, backward, clip, AdamW. They take turns in one process; a figure is the median over the rounds of
theirs / ours, in processor time (above 1: Tessera is faster), the wall clock beside it. Memory is the most that a
process of its own has held. MFU is 6 FLOPs a weight and token, and those of causal attention, over the largest product
that was measured between the rounds.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.loss import megabytes
from benchmarks.train_peers import SHAPES, NotHereError, Shape, TrainStep, nanogpt, tessera, transformers
from tessera.plan import training_flops
from tessera.train import precision
from tessera.train.precision import FP32, Precision
from tessera.train.profile import product_peak

CPU = torch.device("cpu")
EQUAL = " in our precision"
Seconds = dict[str, list[tuple[float, float]]]
"""(wall, processor) of each round, by contestant."""


def chosen(shape: Shape) -> Precision:
    """What `train.precision = "auto"` is here."""
    return precision.choose("auto", CPU, precision.Shape(shape.d_model, shape.n_heads, shape.context, shape.batch_size))


def contestant(name: str, shape: Shape, folder: Path | None) -> TrainStep:
    ours = chosen(shape)
    made = Precision("fp32", onednn=ours.onednn) if ours.name != "fp32" else ours
    return {
        "tessera": lambda: tessera(shape, ours),
        "tessera fp32": lambda: tessera(shape, made),
        "nanogpt": lambda: nanogpt(shape, folder),
        "nanogpt compiled": lambda: nanogpt(shape, folder, compiled=True),
        "nanogpt" + EQUAL: lambda: nanogpt(shape, folder, ours),
        "transformers": lambda: transformers(shape),
        "transformers" + EQUAL: lambda: transformers(shape, ours),
    }[name]()


def contestants(shape: Shape, *, compiled: bool) -> list[str]:
    """Fewer bits, or another library for products, are worth a line of their own; else the peers have ours already."""
    names = ["tessera", "nanogpt", "transformers"]
    if compiled:
        names.append("nanogpt compiled")
    if (ours := chosen(shape)) != FP32 and (ours.name != "fp32" or ours.onednn):
        names += ["nanogpt" + EQUAL, "transformers" + EQUAL]
        names += ["tessera fp32"] if ours.name != "fp32" else []
    return names


def race(shape: Shape, rounds: int, folder: Path | None, console: Console, *, compiled: bool) -> dict[str, Any]:
    """All in turns: the seconds of each round, the product's peak in each, and how far the first losses are apart."""
    steps: dict[str, TrainStep] = {}
    for name in contestants(shape, compiled=compiled):
        try:
            steps[name] = contestant(name, shape, folder)
        except NotHereError as why:
            console.print(f"without {name}: {why}")
    seconds: Seconds = {name: [] for name in steps}
    peaks, losses = [], {name: [] for name in steps}
    for number in range(rounds + 1):
        batch = shape.batch(number)
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            losses[name].append(step(batch))
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        peaks.append(product_peak(CPU, chosen(shape), rounds=3))
    return {
        "seconds": {name: found[1:] for name, found in seconds.items()},
        "peak": max(peaks),
        "apart": {
            name: max(abs(a - b) for a, b in zip(found, losses["tessera"], strict=True))
            for name, found in losses.items()
        },
    }


def ratio(seconds: Seconds, peer: str, ours: str = "tessera", *, clock: int = 1) -> float | None:
    """theirs / ours, the median over the rounds; None without the peer."""
    if peer not in seconds or ours not in seconds:
        return None
    pairs = zip(seconds[peer], seconds[ours], strict=True)
    return round(statistics.median(theirs[clock] / mine[clock] for theirs, mine in pairs), 3)


def memory(name: str, which: str, folder: Path | None) -> float | None:
    """The most MB of a process that makes three steps; None if it cannot."""
    command = [sys.executable, "-m", "benchmarks.train", "--worker", name, which]
    command += [] if folder is None else ["--nanogpt", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def memory_worker(name: str, which: str, folder: Path | None) -> float:
    shape = SHAPES[which]
    with contextlib.redirect_stdout(io.StringIO()):
        step = contestant(name, shape, folder)
        for number in range(3):
            step(shape.batch(number))
    return megabytes("VmHWM")


def measure(console: Console, *, quick: bool, rounds: int, folder: Path | None, compiled: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {"threads": torch.get_num_threads()}
    for size, peer in (("S", "nanogpt"), ("M", "transformers")):
        which = f"quick {size}" if quick else size
        shape, ours = SHAPES[which], chosen(SHAPES[which])
        console.print(f"{size}: {ours.describe()}")
        found = race(shape, rounds, folder, console, compiled=compiled)
        seconds: Seconds = found["seconds"]
        held = {name: memory(name, which, folder) for name in seconds}
        tokens = shape.batch_size * shape.context
        wall = statistics.median(one[0] for one in seconds["tessera"])
        flops = tokens / wall * training_flops(shape.decoder())
        best = _slower(ratio(seconds, peer), ratio(seconds, f"{peer} compiled"))
        base = "tessera" if ours.name == "fp32" else "tessera fp32"
        same = ratio(seconds, peer + EQUAL) if peer + EQUAL in seconds else ratio(seconds, peer)
        figures |= {
            f"{size}_vs_{peer}": best,
            f"{size}_vs_{peer}_wall": ratio(seconds, peer, clock=0),
            f"{size}_fp32": ratio(seconds, peer, base),
            f"{size}_equal_precision": same,
            f"{size}_memory": None if held.get(peer) is None else round(held["tessera"] / held[peer], 3),
            f"{size}_precision": ours.name + (" onednn" if ours.onednn else ""),
            f"{size}_tokens_per_second": round(tokens / wall),
            f"{size}_mfu": round(flops / found["peak"], 3),
            f"{size}_peak_gflops": round(found["peak"] / 1e9, 1),
            f"{size}_loss_apart": found["apart"].get(peer),
        }
        console.print(_table(size, seconds, held, tokens, found["apart"]))
    return figures | {"mfu": figures["S_mfu"]}


def _slower(eager: float | None, compiled: float | None) -> float | None:
    """Against the better of the two, which is the smaller advantage."""
    known = [one for one in (eager, compiled) if one is not None]
    return min(known) if known else None


def _table(size: str, seconds: Seconds, held: dict[str, Any], tokens: int, apart: dict[str, float]) -> Table:
    table = Table(size, "wall s", "processor s", "tokens/s", "Tessera is x times", "MB", "loss apart")
    for name, rounds in seconds.items():
        wall, cpu = (statistics.median(one[clock] for one in rounds) for clock in (0, 1))
        memory = "-" if held[name] is None else f"{held[name]:,.0f}"
        cells = [f"{wall:.3f}", f"{cpu:.3f}", f"{tokens / wall:,.0f}", str(ratio(seconds, name)), memory]
        table.add_row(name, *cells, f"{apart[name]:.1e}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models, three rounds")
    parser.add_argument("--rounds", type=int, help="5 unless said, 3 with --quick")
    parser.add_argument("--threads", type=int, help="PyTorch's own choice unless said")
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a folder with nanoGPT's model.py")
    parser.add_argument("--compile", action="store_true", help="nanoGPT with torch.compile as well: takes minutes")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.worker:
        print(memory_worker(*arguments.worker, arguments.nanogpt))
        return
    console = Console(stderr=arguments.json, width=120)
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    figures = measure(
        console, quick=arguments.quick, rounds=rounds, folder=arguments.nanogpt, compiled=arguments.compile
    )
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        console.print(f"{name:<24} {value}")


if __name__ == "__main__":
    main()
