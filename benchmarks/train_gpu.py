"""A training step on a GPU: Tessera beside nanoGPT, GPT-2's shape at 124M and 350M parameters, context 1,024, in bf16.

Both are compiled, have a fused AdamW and a vocabulary of 50,257 tokens padded to 50,304 rows, begin from the same
weights and learn the same batches; nanoGPT takes the padding for words, so that its first loss is larger by ln(50304 /
50257) = 0.0009. They take turns in one process; a turn is some steps with one wait at its end, and a figure is the
median over the rounds. The micro-batch is the largest of powers of two that fits for both. MFU is 6 FLOPs a weight and
token, and those of causal attention, over the largest bf16 product that was measured between the rounds. Before it, the
kernels are compared with their references on the device (`--no-checks` leaves that out).
"""

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.nanogpt import NotHereError
from benchmarks.train_gpu_contestants import GpuShape, TrainStep, nanogpt, tessera
from benchmarks.train_ours import decoder
from tessera.torch_plan import training_flops
from tessera.train.compile import compile_seconds
from tessera.train.memory import is_out_of_memory
from tessera.train.precision import Precision
from tessera.train.profile import product_peak

SHAPES = {
    "124M": GpuShape("gpt2", 12, 768, 12, 3072, 1024, 64, 50257),
    "350M": GpuShape("gpt2", 24, 1024, 16, 4096, 1024, 64, 50257),
    "quick": GpuShape("gpt2", 2, 64, 2, 256, 64, 8, 251),
}
CHECKS = (
    "tests/ops/triton_kernels.py",
    "tests/ops/test_attention_devices.py",
    "tests/ops/test_float8.py",
    "tests/train/test_late.py",
    "tests/train/test_training_devices.py",
    "tests/generate/test_graph_step.py",
)


@dataclass
class Turns:
    """What was measured of one contestant."""

    step: TrainStep
    own: int
    """The bytes that it holds between two steps."""
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    first_loss: float = math.nan


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def held(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def begin(make: Callable[[], TrainStep], shape: GpuShape, device: torch.device) -> Turns:
    """Make a contestant, and take its first steps, which compile."""
    before = held(device)
    step = make()
    loss = step(shape.batch(0, device))
    turns = Turns(step, 0, first_loss=float(loss()))
    for number in range(1, 4):
        step(shape.batch(number, device))
    wait(device)
    turns.own = held(device) - before
    return turns


def turn(turns: Turns, shape: GpuShape, device: torch.device, steps: int, first: int) -> None:
    """`steps` steps, and one wait for all."""
    batches = [shape.batch(first + number, device) for number in range(steps)]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    others = held(device) - turns.own
    wait(device)
    start = time.perf_counter()
    for batch in batches:
        turns.step(batch)
    wait(device)
    turns.seconds.append((time.perf_counter() - start) / steps)
    if device.type == "cuda":
        turns.peak = max(turns.peak, torch.cuda.max_memory_allocated(device) - others)


def fitted(shape: GpuShape, makers: dict[str, Callable[[GpuShape], TrainStep]], device: torch.device) -> GpuShape:
    """The shape with the largest micro-batch in which all contestants, side by side, make a step."""
    while not _make_a_step(shape, makers, device):
        if shape.batch_size == 1:
            raise SystemExit("one row does not fit into the memory of this device")
        shape = replace(shape, batch_size=shape.batch_size // 2)
        gc.collect()
        torch.cuda.empty_cache()
    return shape


def _make_a_step(shape: GpuShape, makers: dict[str, Callable[[GpuShape], TrainStep]], device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    try:
        for step in [make(shape) for make in makers.values()]:
            for number in range(2):  # the second has the optimizer's state
                step(shape.batch(number, device))
        wait(device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def measure(
    name: str, shape: GpuShape, arguments: argparse.Namespace, device: torch.device, console: Console
) -> dict[str, Any]:
    precision = Precision(arguments.precision)
    makers: dict[str, Callable[[GpuShape], TrainStep]] = {
        "tessera": lambda shape: tessera(shape, precision, device, compiled=arguments.compile),
        "nanogpt": lambda shape: nanogpt(shape, arguments.nanogpt, precision, device, compiled=arguments.compile),
    }
    try:
        makers["nanogpt"](replace(SHAPES["quick"], batch_size=1))
    except NotHereError as why:
        console.print(f"without nanoGPT: {why}")
        del makers["nanogpt"]
    shape = fitted(replace(shape, batch_size=arguments.micro_batch or shape.batch_size), makers, device)
    gc.collect()
    contestants = {who: begin(lambda make=make: make(shape), shape, device) for who, make in makers.items()}
    peaks = []
    for number in range(arguments.rounds):
        for turns in contestants.values():
            turn(turns, shape, device, arguments.steps, 10 + number * arguments.steps)
        peaks.append(product_peak(device, Precision("bf16"), size=512 if device.type == "cpu" else None, rounds=3))
    console.print(_table(f"{name}, micro-batch {shape.batch_size} x {shape.context}", contestants, shape))
    console.print(f"compiling took {compile_seconds():.0f} s so far, nanoGPT's among it")
    return _figures(name, shape, contestants, max(peaks))


def _figures(name: str, shape: GpuShape, contestants: dict[str, Turns], peak: float) -> dict[str, Any]:
    ours, theirs = contestants["tessera"], contestants.get("nanogpt")
    tokens = shape.batch_size * shape.context
    rate = tokens / statistics.median(ours.seconds)
    ratio = theirs and statistics.median(b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True))
    return {
        f"tokens_per_second_{name}": round(rate),
        f"mfu_{name}": round(rate * training_flops(decoder(shape)) / peak, 3),
        f"vs_nanogpt_{name}": ratio and round(ratio, 3),
        f"memory_vs_nanogpt_{name}": round(ours.peak / theirs.peak, 3) if theirs and theirs.peak else None,
        f"peak_gb_{name}": round(ours.peak / 1e9, 2) if ours.peak else None,
        f"micro_batch_{name}": shape.batch_size,
        f"loss_apart_{name}": theirs and abs(ours.first_loss - theirs.first_loss),
        "peak_tflops": round(peak / 1e12, 1),
    }


def _table(title: str, contestants: dict[str, Turns], shape: GpuShape) -> Table:
    table = Table(title, "ms a step", "tokens/s", "Tessera is x times", "GB at most", "first loss")
    ours = contestants["tessera"].seconds
    for who, turns in contestants.items():
        seconds = statistics.median(turns.seconds)
        ratio = statistics.median(b / a for a, b in zip(ours, turns.seconds, strict=True))
        memory = f"{turns.peak / 1e9:.1f}" if turns.peak else "-"
        rate = shape.batch_size * shape.context / seconds
        table.add_row(who, f"{1000 * seconds:.1f}", f"{rate:,.0f}", f"{ratio:.2f}", memory, f"{turns.first_loss:.4f}")
    return table


def check(console: Console) -> bool:
    """The tests that have a device to run on, in a process of their own: CUDA is to be new to the benchmark."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-m", "slow or not slow", "-q"]
    done = subprocess.run([*command, *CHECKS], cwd=root, capture_output=True, text=True)
    console.print(done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stdout[-4000:])
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny shape, few steps: to see that all of it runs")
    parser.add_argument("--rounds", type=int, help="5 unless said, 2 with --quick")
    parser.add_argument("--steps", type=int, help="in a turn: 20 unless said, 2 with --quick")
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a folder with nanoGPT's model.py")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("bf16", "fp8", "fp32", "tf32"), default="bf16")
    parser.add_argument("--micro-batch", type=int, help="begin with this one instead of 64, halved until it fits")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="on a GPU unless said")
    parser.add_argument(
        "--checks", action=argparse.BooleanOptionalAction, default=True, help="kernels against references"
    )
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    arguments.steps = arguments.steps or (2 if arguments.quick else 20)
    if arguments.compile is None:
        arguments.compile = device.type == "cuda"
    console = Console(stderr=arguments.json, width=120)
    if device.type != "cuda" and not arguments.quick:
        raise SystemExit(f"there is no GPU here (--device {device}): --quick runs a tiny shape anywhere")
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)}
    if arguments.checks:
        figures["checks_passed"] = check(console)
    for name, shape in SHAPES.items():
        if (name == "quick") == arguments.quick:
            figures |= measure(name, shape, arguments, device, console)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            console.print(f"{key:<32} {value}")
    if not figures.get("checks_passed", True):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
