"""llama.cpp (the package xllamacpp), asked in a process of its own: what it does not take may end the process."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CHILD = """
import json, sys, urllib.request
import xllamacpp

path, n_probs, printable = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
asked = json.load(sys.stdin)
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = path, 256, 1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)

def next_logs(ids):
    # The log-probabilities come with a token of text; which one it is does not change them.
    wanted = {"n_predict": 1, "temperature": 0, "n_probs": n_probs, "logit_bias": [[printable, 1000]]}
    found = server.handle_completions({"prompt": ids, "cache_prompt": True, **wanted})
    found = json.loads(found) if isinstance(found, str) else found
    shown = found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {each["id"]: each["logprob"] for each in shown}

logs = [next_logs(ids[:end]) for ids in asked["ids"] for end in range(asked["first"], len(ids) + 1)]
tokens = []
for text in asked["texts"]:
    request = urllib.request.Request(
        server.listening_address + "/tokenize",
        data=json.dumps({"content": text, "add_special": False, "parse_special": False}).encode(),
        headers={"content-type": "application/json"},
    )
    tokens.append(json.loads(urllib.request.urlopen(request).read())["tokens"])
print("ANSWER" + json.dumps({"logs": logs, "tokens": tokens}))
"""


@dataclass(frozen=True)
class Answer:
    """Log-probabilities after each asked-for beginning, (beginnings, V), and the ids of the texts."""

    logs_NV: Tensor
    tokens: list[list[int]]


def ask(
    path: Path,
    n_vocab: int,
    *,
    ids: list[int] | None = None,
    first: int = 1,
    texts: list[str] | None = None,
    printable: int = ord("A"),
    n_best: int | None = None,
) -> Answer:
    """What follows each beginning of `ids` from `first` tokens on, and how the texts are cut.

    `printable` is the id of a token that is text. `n_best`: only of so many likeliest tokens, the others have -inf.
    """
    asked = {"ids": [ids] if ids else [], "first": first, "texts": texts or []}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(n_best or n_vocab), str(printable)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=120,
    )
    answer = next((line for line in done.stdout.splitlines() if "ANSWER" in line), None)
    assert answer is not None, f"llama.cpp does not take {path}: {(done.stdout + done.stderr)[-2000:]}"
    found = json.loads(answer[answer.index("ANSWER") + 6 :])
    logs = np.full((len(found["logs"]), n_vocab), -np.inf, np.float32)
    for row, given in zip(logs, found["logs"], strict=True):
        for id, log in given.items():
            row[int(id)] = log
    return Answer(torch.from_numpy(logs), found["tokens"])
