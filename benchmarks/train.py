"""A training step of Tessera beside nanoGPT's model, transformers', litgpt's and LLMs-from-scratch's, on the same work.

S is GPT's kind (6 layers, 384 wide, 6 heads, context 256, batch 16, vocabulary 65, head tied to the embedding), M is
Llama's (8 layers, 512 wide, 8 heads, batch 8 x 256, vocabulary 8,192). All begin from the same weights and learn the
same batches: forward, backward, clip, AdamW. They take turns in one process; a figure is the median over the rounds of
theirs / ours, in processor time (above 1: Tessera is faster), the wall clock beside it.

Where a peer's model is not quite S (`twin`: biases, rotary positions), its time is compared with that of S all the
same, and its losses with those of the model that is the same. Memory is the most that a process of its own has held.
MFU is 6 FLOPs a weight and token, and those of causal attention, over the largest product that was measured between the
rounds. As shipped is `train.precision = "auto"`; equal precision is a peer with our autocast and our library.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.train_loop import loop_overhead, muon_cost, startup
from benchmarks.train_memory import in_own_process
from benchmarks.train_ours import decoder, tessera
from benchmarks.train_peers import NotHereError, Peer, Way, peers
from benchmarks.train_precision import AS_SHIPPED, IN_FP32, best_fp32, chosen, measurable, peers_way
from benchmarks.train_shapes import SHAPES, Shape, TrainStep
from tessera.torch_plan import training_flops
from tessera.train.precision import Precision
from tessera.train.profile import product_peak

CPU = torch.device("cpu")
MAIN = {"S": "nanogpt", "M": "transformers"}
COMPILED, EQUAL = " compiled", " in our precision"
CURVE_STEPS = 20
Seconds = dict[str, list[tuple[float, float]]]
"""(wall, processor) of each round, by contestant."""


@dataclass(frozen=True)
class Options:
    quick: bool
    rounds: int
    nanogpt: Path | None = None
    folder: Path | None = None
    compiled: bool = False

    def peers(self) -> dict[str, Peer]:
        return peers(nanogpt=self.nanogpt, folder=self.folder)

    def name(self, size: str) -> str:
        return f"quick {size}" if self.quick else size


def contestants(size: str, shape: Shape, ours: Precision, options: Options) -> dict[str, Callable[[], TrainStep]]:
    """Who takes part, as what makes its step. The main peer runs compiled and in our precision as well."""
    found: dict[str, Callable[[], TrainStep]] = {AS_SHIPPED: lambda: tessera(shape, ours)}
    if (plain := best_fp32()).onednn != ours.onednn or ours.name != "fp32":
        found[IN_FP32] = lambda: tessera(shape, plain)

    def of_peer(peer: Peer, way: Way) -> Callable[[], TrainStep]:
        return lambda: peer.step(shape, decoder(peer.twin(shape)).state_dict(), way)

    for name, peer in options.peers().items():
        found[name] = of_peer(peer, Way())
        if name != MAIN[size]:
            continue
        if options.compiled:
            found[name + COMPILED] = of_peer(peer, Way(compiled=True))
        if (way := peers_way(ours)) not in (None, Way()):
            found[name + EQUAL] = of_peer(peer, way)
    return found


def race(size: str, shape: Shape, options: Options, console: Console) -> tuple[Seconds, float]:
    """All in turns: the seconds of each round after one to warm up, and the peak of a large product."""
    ours, steps = chosen(shape), {}
    for name, make in contestants(size, shape, ours, options).items():
        try:
            steps[name] = make()
        except NotHereError as why:
            console.print(f"{size} without {name}: {why}")
    seconds: Seconds = {name: [] for name in steps}
    peaks = []
    for number in range(options.rounds + 1):
        rows = shape.batch(number)
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step(rows)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        peaks.append(product_peak(CPU, measurable(ours), rounds=3))
    return {name: found[1:] for name, found in seconds.items()}, max(peaks)


def curves(shape: Shape, peer: Peer, *, steps: int = CURVE_STEPS) -> list[float]:
    """How far the losses of a peer and of its twin in fp32 are apart, step by step, from the same weights."""
    twin = peer.twin(shape)
    theirs, mine = peer.step(shape, decoder(twin).state_dict()), tessera(twin, best_fp32())
    return [abs(theirs(rows) - mine(rows)) for rows in map(shape.batch, range(steps))]


def numerics(size: str, options: Options, console: Console) -> dict[str, float | None]:
    """The loss curves; those of the peers that are not the main one on the small shape, which is as telling."""
    figures: dict[str, float | None] = {}
    for name, peer in options.peers().items():
        which = options.name(size) if name == MAIN[size] else f"quick {size}"
        key = f"{size}_curve" if name == MAIN[size] else f"{size}_curve_{name}"
        try:
            apart = curves(SHAPES[which], peer)
        except NotHereError:
            figures |= {key: None}
            continue
        figures |= {key: max(apart), key.replace("curve", "first_loss"): apart[0]}
        console.print(
            f"{which}: losses of {name} and Tessera in fp32 are apart {apart[0]:.1e} at the first step, "
            f"{max(apart):.1e} at most in {len(apart)}"
        )
    return figures


def ratio(seconds: Seconds, peer: str, ours: str = AS_SHIPPED, *, clock: int = 1) -> float | None:
    """theirs / ours, the median over the rounds; None without the peer."""
    if peer not in seconds:
        return None
    pairs = zip(seconds[peer], seconds.get(ours, seconds[AS_SHIPPED]), strict=True)
    return round(statistics.median(theirs[clock] / mine[clock] for theirs, mine in pairs), 3)


def best_ratio(seconds: Seconds, peer: str, ours: str = AS_SHIPPED, *, clock: int = 1) -> float | None:
    """Against the better of eager and compiled, which is the smaller advantage."""
    known = [ratio(seconds, name, ours, clock=clock) for name in (peer, peer + COMPILED)]
    return min((one for one in known if one is not None), default=None)


def speed(size: str, options: Options, console: Console) -> tuple[dict[str, Any], Seconds]:
    shape = SHAPES[options.name(size)]
    ours, main = chosen(shape), MAIN[size]
    console.print(f"{size}: {ours.describe()}")
    seconds, peak = race(size, shape, options, console)
    tokens = shape.batch_size * shape.context
    wall, cpu = (statistics.median(one[clock] for one in seconds[AS_SHIPPED]) for clock in (0, 1))
    figures: dict[str, Any] = {
        f"{size}_precision": ours.name + (" onednn" if ours.onednn else ""),
        f"{size}_tokens_per_second": round(tokens / wall),
        f"{size}_mfu": round(tokens / wall * training_flops(decoder(shape)) / peak, 3),
        f"{size}_peak_gflops": round(peak / 1e9, 1),
        f"{size}_fp32": best_ratio(seconds, main, IN_FP32),
        f"{size}_fp32_wall": best_ratio(seconds, main, IN_FP32, clock=0),
        f"{size}_equal_precision": _equal(seconds, main, ours, console),
        f"{size}_cores_busy": round(cpu / wall, 2),
    }
    for name in options.peers():
        if name in seconds or name == main:
            figures[f"{size}_vs_{name}"] = best_ratio(seconds, name)
            figures[f"{size}_vs_{name}_wall"] = best_ratio(seconds, name, clock=0)
    return figures, seconds


def _equal(seconds: Seconds, peer: str, ours: Precision, console: Console) -> float | None:
    """The peer in our precision, or as it ships where that is the same."""
    if peers_way(ours) is None:
        console.print(f"no peer trains in {ours.name}: equal precision has nobody to be compared with; see fp32")
        return None
    return ratio(seconds, peer + EQUAL if peer + EQUAL in seconds else peer)


def memory(size: str, names: Seconds, options: Options) -> dict[str, float]:
    """MB of all that took part, but for what differs in its speed alone."""
    plain = [name for name in names if not name.endswith((COMPILED, EQUAL))]
    return {name: in_own_process(name, options.name(size), options.nanogpt, options.folder) for name in plain}


def table(size: str, seconds: Seconds, held: dict[str, float], tokens: int) -> Table:
    made = Table(size, "wall s", "processor s", "tokens/s", "Tessera is x times", "by the wall clock", "MB")
    for name, rounds in seconds.items():
        wall, cpu = (statistics.median(one[clock] for one in rounds) for clock in (0, 1))
        cells = [f"{wall:.3f}", f"{cpu:.3f}", f"{tokens / wall:,.0f}"]
        cells += [str(ratio(seconds, name)), str(ratio(seconds, name, clock=0))]
        made.add_row(name, *cells, f"{held[name]:,.0f}" if name in held else "")
    return made


def measure_size(size: str, options: Options, console: Console) -> dict[str, Any]:
    figures, seconds = speed(size, options, console)
    held, peer = memory(size, seconds, options), MAIN[size]
    shape = SHAPES[options.name(size)]
    console.print(table(size, seconds, held, shape.batch_size * shape.context))
    figures[f"{size}_megabytes"] = round(held[AS_SHIPPED])
    for key, ours in (("memory", AS_SHIPPED), ("memory_fp32", IN_FP32)):
        mine = held.get(ours, held[AS_SHIPPED])
        figures[f"{size}_{key}"] = round(mine / held[peer], 3) if peer in held else None
    return figures | numerics(size, options, console)


def measure_loop(options: Options, console: Console) -> dict[str, Any]:
    shape = SHAPES[options.name("S")]
    console.print("the loop's own part, the start, Muon")
    return {
        "loop_overhead": loop_overhead(shape, steps=6 if options.quick else 12),
        **startup(),
        "muon_cost": muon_cost(shape, rounds=options.rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models, three rounds, nothing compiled")
    parser.add_argument("--rounds", type=int, help="5 unless said, 3 with --quick")
    parser.add_argument("--threads", type=int, help="PyTorch's own choice unless said")
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a folder with nanoGPT's model.py")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="where packages lie that are not installed")
    parser.add_argument(
        "--no-compile", action="store_true", help="the peers without torch.compile, which takes minutes"
    )
    parser.add_argument("--only", choices=("S", "M", "loop"), help="a part of it")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    options = Options(
        quick=arguments.quick,
        rounds=arguments.rounds or (3 if arguments.quick else 5),
        nanogpt=arguments.nanogpt,
        folder=arguments.peers,
        compiled=not (arguments.quick or arguments.no_compile),
    )
    console = Console(stderr=arguments.json, width=120)
    figures: dict[str, Any] = {"threads": torch.get_num_threads()}
    for part in ("S", "M", "loop") if arguments.only is None else (arguments.only,):
        figures |= measure_loop(options, console) if part == "loop" else measure_size(part, options, console)
    figures |= {"mfu": figures["S_mfu"]} if "S_mfu" in figures else {}
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        console.print(f"{name:<28} {value}")


if __name__ == "__main__":
    main()
