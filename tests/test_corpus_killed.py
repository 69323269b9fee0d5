"""What a run says that it read, after real kills: held against what reached the model in the processes themselves.

This file is also a program, the conductor: it has torch loaded and forks a child for each attempt. A child writes down
the rows of each forward pass, and ends itself by SIGKILL in the middle of one; the steps since the checkpoint are then
made again by the next child. What counts is what the last child that made a step has learned from.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera import job
from tessera.data.batch import IGNORE, Batch
from tessera.objectives import NextToken
from tessera.reading import what_was_read
from tessera.recipe import load_recipe
from tessera.tokenizers import load_tokenizer
from tessera.train.trainer import Trainer

STEPS, ACCUMULATE = 10, 2
KINDS = ("random", "epoch", "packed")
KILLED_AT = (11, 5, 6)
"""The last forward pass of each attempt: the first of step 6, then the first of step 7, then the second of step 9."""
CONTENT: dict[str, Any] = {
    "tokenizer": "byte",
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "context": 16},
    "train": {"steps": STEPS, "batch_size": 5, "accumulate": ACCUMULATE, "device": "cpu", "threads": 1}
    | {"precision": "fp32", "eval_every": 0, "save_every": 2, "sample_every": 0},
    "sample": {"sampling": {"max_tokens": 1}},
}


def watch(diary: Path, end_at: int | None) -> None:
    """From now on, note the step that a training goes on from and the targets of each of its forward passes."""
    forward, run = NextToken.forward, Trainer.run
    file = diary.open("a")
    seen = 0

    def note(entry: Any) -> None:
        file.write(json.dumps(entry) + "\n")
        file.flush()

    def watched_run(self: Trainer) -> Any:
        note(self.step)
        return run(self)

    def watched(self: NextToken, batch: Batch) -> Any:
        nonlocal seen
        if self.training:
            seen += 1
            note([row[row != IGNORE].tolist() for row in batch.targets_BT])
            if seen == end_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, batch)

    NextToken.forward, Trainer.run = watched, watched_run  # type: ignore[method-assign]


def attempt(folder: Path, kind: str, end_at: int | None) -> int:
    """Train, or go on, in a child: the signal that ended it, 0 if none did."""
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a child failed"
        return os.WTERMSIG(status)
    status = 1
    try:
        watch(folder / kind / "diary", end_at)
        run = folder / kind / "run"
        mixture = [
            {"source": str(folder / "red"), "weight": 0.7, "epochs": 2},
            {"source": str(folder / "blue"), "weight": 0.3},
        ]
        content = CONTENT | {"data": {"mixture": mixture, "batches": kind, "validation": 0.2}}
        (job.resume(run) if run.exists() else job.train(load_recipe(None, base=content), run)).run.close()
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def learned(diary: Path) -> list[list[list[int]]]:
    """The forward passes that the finished run is made of: of those made twice, the later."""
    passes: list[list[list[int]]] = []
    for line in diary.read_text().splitlines():
        entry = json.loads(line)
        if isinstance(entry, int):
            del passes[entry * ACCUMULATE :]
        else:
            passes.append(entry)
    return passes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    for name, n in (("red", 30), ("blue", 20)):
        (folder / name).mkdir()
        for i in range(n):
            (folder / name / f"{i:02d}.txt").write_text(" ".join(f"{name}{(7 * i + k) % 23}" for k in range(3 + i % 9)))
    for kind in KINDS:
        (folder / kind).mkdir()
    alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # a process with other threads must not be forked
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=os.environ | alone, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_told_of_a_killed_run_is_what_it_was_made_of(folder: Path, kind: str) -> None:
    passes = learned(folder / kind / "diary")
    assert len(passes) == STEPS * ACCUMULATE
    assert len((folder / kind / "diary").read_text().splitlines()) > len(passes) + len(KILLED_AT) + 1  # some twice
    tokenizer = load_tokenizer(folder / kind / "run" / "tokenizer.json")
    rows, tokens = dict.fromkeys(("red", "blue"), 0), dict.fromkeys(("red", "blue"), 0)
    for step in range(1, STEPS + 1):
        told = what_was_read(folder / kind / "run", step=step, rows=True)
        made: Sequence[list[list[int]]] = passes[(step - 1) * ACCUMULATE : step * ACCUMULATE]
        expected = [(number, tokenizer.decode(row)) for number, batch in enumerate(made) for row in batch]
        assert [(row.micro_batch, "".join(each.text for each in row.stretches)) for row in told.rows] == expected
        for row in told.rows:
            assert all(f"/{row.source}/" in stretch.document for stretch in row.stretches)
            rows[row.source] += 1
            tokens[row.source] += sum(stretch.tokens for stretch in row.stretches)
        assert {source.name: source.rows for source in told.sources} == rows
        assert {source.name: source.tokens for source in told.sources} == tokens
    n = STEPS * ACCUMULATE * CONTENT["train"]["batch_size"]
    assert abs(rows["red"] - 0.7 * n) < 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in KINDS:
        for end_at in KILLED_AT:
            assert attempt(Path(sys.argv[1]), kind, end_at) == signal.SIGKILL
        assert attempt(Path(sys.argv[1]), kind, None) == 0
