"""What 8 and 4 bits cost on a whole text: SmolLM2-135M-Instruct in the CPU engine, where activations have 8 bits too.

    python -m benchmarks.perplexity wikitext2-valid.txt

The text is cut into windows of 512 tokens side by side, and after each token of a window the next one is predicted from
the window so far. The file that is shipped is Q4_1 with a Q8_0 head; fp32 and q8_0 are made of it.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.generate import shipped
from tessera.formats import open_model
from tessera.generate.cpu.model import CpuModel
from tessera.generate.requests import StepRows

LENGTH = 512
KINDS = {"fp32": "fp32", "q8_0": "q8_0", "as shipped": None}


def mean_loss(model: CpuModel, ids: np.ndarray) -> float:
    """Nats a token."""
    total, table = 0.0, [list(range(LENGTH // model.block_size))]
    for start in range(0, len(ids) - 1, LENGTH):
        inputs, targets = ids[start : start + LENGTH][: len(ids) - 1 - start], ids[start + 1 : start + LENGTH + 1]
        rows = StepRows(inputs.tolist(), [0] * len(inputs), range(len(inputs)), range(len(inputs)))
        logits = model.step(rows, table)
        greatest = logits.max(axis=-1, keepdims=True)
        sums = np.exp(logits - greatest).sum(axis=-1, dtype=np.float64)
        total += float((np.log(sums) + greatest[:, 0] - logits[np.arange(len(targets)), targets]).sum())
    return total / (len(ids) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--quick", action="store_true", help="the first 4,096 tokens")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    source = open_model(shipped())
    assert source.tokenizer is not None
    ids = np.array(source.tokenizer.encode(arguments.text.read_text(encoding="utf-8"), specials="none"))
    ids = ids[: 8 * LENGTH + 1] if arguments.quick else ids
    table = Table("weights", "perplexity", "to fp32", title=f"{len(ids) - 1:,} tokens of {arguments.text.name}")
    found: dict[str, float] = {"tokens": len(ids) - 1}
    for name, storage in KINDS.items():
        model = CpuModel.from_source(source, storage, n_blocks=LENGTH // CpuModel.block_size, say=console.print)
        perplexity = found[name] = round(math.exp(mean_loss(model, ids)), 3)
        table.add_row(name, f"{perplexity:.3f}", f"{perplexity / found['fp32'] - 1:+.2%}")
        model.close()
    console.print(table)
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
