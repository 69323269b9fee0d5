"""Decoding on a GPU: replayed graphs beside the same steps launched kernel by kernel, for a few numbers of sequences.

A decoder of SmolLM2-135M's shape with weights of no meaning, in bf16; each sequence has 512 tokens in the cache before
the first step that counts. The two ways take turns in one process; a turn is some steps, each of which ends when its
logits are on the CPU, as in the scheduler. A figure is the median over the rounds. Captures are not in it.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch

from tessera.generate.graph_step import GraphStep
from tessera.generate.requests import StepRows
from tessera.generate.torch_step import TorchStep
from tessera.model.decoder import Decoder

SHAPE: dict[str, Any] = {"n_vocab": 49152, "context": 2048, "d_model": 576, "n_layers": 30, "n_heads": 9, "d_ff": 1536}
QUICK = SHAPE | {"n_vocab": 256, "context": 256, "d_model": 36, "n_layers": 2, "d_ff": 64}
BLOCK = 16


def filled(backend: TorchStep, tables: list[list[int]], length: int) -> None:
    """Let each sequence have so many tokens."""
    for table in tables:
        backend.step(StepRows([1] * length, [0] * length, range(length), [length - 1]), [table])


def turn(backend: TorchStep, tables: list[list[int]], places: range) -> float:
    """The seconds of a step."""
    each = range(len(tables))
    start = time.perf_counter()
    for place in places:
        backend.step(StepRows([place % 251] * len(each), each, [place] * len(each), each), tables)
    return (time.perf_counter() - start) / len(places)


def measure(model: Decoder, n: int, length: int, steps: int, rounds: int) -> dict[str, Any]:
    size = -(-(length + steps) // BLOCK)
    tables = [list(range(i * size, (i + 1) * size)) for i in range(n)]
    ways = {"graphs": GraphStep(model, n_blocks=n * size), "kernels": TorchStep(model, n_blocks=n * size)}
    places = range(length, length + steps)
    for backend in ways.values():
        filled(backend, tables, length)
        turn(backend, tables, places)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, backend in ways.items():
            seconds[way].append(turn(backend, tables, places))
    found = {f"tokens_per_second_{n}_{way}": round(n / statistics.median(each)) for way, each in seconds.items()}
    ratio = statistics.median(b / a for a, b in zip(seconds["graphs"], seconds["kernels"], strict=True))
    return found | {f"graphs_vs_kernels_{n}": round(ratio, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny shape, few steps: to see that all of it runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type != "cuda" and not arguments.quick:
        raise SystemExit(f"there is no GPU here (--device {device}): --quick runs a tiny shape anywhere")
    torch.manual_seed(0)
    model = Decoder(attention={"name": "gqa", "n_kv_heads": 3}, tied=True, **(QUICK if arguments.quick else SHAPE))
    model = model.to(device=device, dtype=torch.bfloat16).eval().requires_grad_(False)
    length, steps, sizes = (40, 4, (1, 3)) if arguments.quick else (512, 64, (1, 8, 64))
    figures = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)}
    for n in sizes:
        figures |= measure(model, n, length, steps, arguments.rounds)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
