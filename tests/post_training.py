"""A model of a few thousand weights and a handful of examples, for tests of what goes on from a model."""

import json
import random
from pathlib import Path
from typing import Any

from tessera.config import Spec
from tessera.lm import LM

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["cat", "dog", "cow", "hen", "pig"]
RECIPE: dict[str, Any] = {
    "data": {"examples": {"template": "chatml", "held_out": 6}},
    "optimizer": {"name": "adamw", "lr": 1e-2},
    "schedule": {"name": "cosine", "warmup": 2},
    "train": {"steps": 6, "batch_size": 4, "eval_every": 3, "save_every": 2, "device": "cpu", "keep": 9},
    "sample": {"sampling": {"max_tokens": 4}},
}
ADAPT = {"name": "lora", "rank": 4}


def write_base(path: Path, **settings: Any) -> Path:
    """A saved model that knows bytes and the special tokens of ChatML."""
    shape = {"d_model": 32, "n_heads": 2, "n_layers": 2, "d_ff": 64, "context": 96} | settings
    LM.new(tokenizer=Spec("byte", {"specials": SPECIALS}), **shape).save(path)
    return path


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_examples(folder: Path, n: int = 26) -> dict[str, Path]:
    """A file for each kind of example."""
    draw = random.Random(0)
    words = [draw.choice(WORDS) for _ in range(n)]
    asked = [f"Say {word} {i}" for i, word in enumerate(words)]
    both = list(zip(asked, words, strict=True))
    made = {
        "conversations": [
            {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": 2 * w}]} for a, w in both
        ],
        "pairs": [{"prompt": a, "chosen": 2 * w, "rejected": w} for a, w in both],
        "judged": [{"prompt": a, "completion": w * (1 + i % 2), "label": bool(i % 2)} for i, (a, w) in enumerate(both)],
        "tasks": [{"prompt": a, "answer": w} for a, w in both],
    }
    return {kind: write_lines(folder / f"{kind}.jsonl", records) for kind, records in made.items()}
