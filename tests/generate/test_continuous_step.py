"""Steps of rows of several sequences: each row has the logits that it has alone, uncached, for every kind of model."""

import random

import numpy as np
import pytest
import torch
from tests.generate.test_engine import small

from tessera.generate.requests import StepRows
from tessera.generate.torch_step import TorchStep

KINDS = {
    "plain": {},
    "window": {"attention": {"name": "gqa", "window": 5}},
    "window that keeps": {"attention": {"name": "gqa", "window": 5, "window_keeps": 2}},
    "grouped, capped, normed": {"attention": {"name": "gqa", "n_kv_heads": 2, "score_cap": 5.0, "qk_norm": True}},
    "sinks": {"attention": {"name": "gqa", "sinks": True, "window": 7}},
    "layers in turns": {"attention": [{"name": "gqa", "window": 4}, "gqa"], "position": ["rope", "none"]},
    "first values": {"attention": {"name": "gqa", "value_residual": True}},
    "latent": {"attention": "mla"},
    "latent, alibi": {"attention": "mla", "position": "alibi"},
    "alibi": {"position": "alibi"},
    "alibi, window": {"position": "alibi", "attention": {"name": "gqa", "window": 5}},
    "t5": {"position": {"name": "t5", "n_buckets": 8, "max_distance": 16}},
    "learned": {"position": "learned"},
    "no position": {"position": "none"},
    "sinusoidal": {"position": "sinusoidal", "placement": "post", "norm": "layer"},
    "half rope": {"position": {"name": "rope", "share": 0.5, "layout": "interleaved"}, "placement": "parallel"},
    "experts": {"feed_forward": {"name": "moe", "n_experts": 4, "n_active": 2}, "placement": "sandwich"},
    "n-grams": {"embedding": {"name": "ngram", "rows": 64}},
    "capped logits, tied": {"logit_cap": 5.0, "tied": True, "embedding_scale": 2.0},
}


def steps(backend: TorchStep, texts: list[list[int]], draws: random.Random) -> list[np.ndarray]:
    """The logits after each token of each text, fed in chunks of any size, mixed anyhow, in blocks in any order."""
    free = list(range(backend.n_blocks))
    draws.shuffle(free)
    tables = [[free.pop() for _ in range(-(-len(text) // backend.block_size))] for text in texts]
    lengths = [0] * len(texts)
    found: list[list[np.ndarray]] = [[] for _ in texts]
    while going := [i for i, text in enumerate(texts) if lengths[i] < len(text)]:
        rows = StepRows([], [], [], [])
        of_row = []
        for i in draws.sample(going, draws.randint(1, len(going))):
            n = draws.choice([1, 1, 3, draws.randint(1, 9)])
            end = min(len(texts[i]), lengths[i] + n)
            rows.ids.extend(texts[i][lengths[i] : end])
            rows.positions.extend(range(lengths[i], end))
            rows.sequences.extend([i] * (end - lengths[i]))
            of_row.extend([i] * (end - lengths[i]))
            lengths[i] = end
        logits = backend.step(rows._replace(wanted=list(range(len(rows.ids)))), tables)
        for i, logits_V in zip(of_row, logits, strict=True):
            found[i].append(logits_V)
    return [np.stack(each) for each in found]


@pytest.mark.parametrize("kind", KINDS)
def test_as_alone_and_uncached(kind: str) -> None:
    draws = random.Random(kind)
    model = small(context=32, **KINDS[kind])
    texts = [[draws.randrange(256) for _ in range(n)] for n in (1, 7, 12, 12, 19, 32)]
    texts[3][:9] = texts[2][:9]
    backend = TorchStep(model, n_blocks=40, block_size=4)
    for found, text in zip(steps(backend, texts, draws), texts, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([text]))[0].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, np.abs(expected).max()), rtol=0)


def test_answers_of_very_different_lengths_are_not_filled_up_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.model.paged.SHORT", 4)
    model = small(context=32)
    draws = random.Random(0)
    texts = [[draws.randrange(256) for _ in range(n)] for n in (1, 2, 5, 6, 25, 31)]
    backend = TorchStep(model, n_blocks=48, block_size=4)
    tables, blocks = [], iter(range(48))
    for text in texts:
        tables.append([next(blocks) for _ in range(8)])
        backend.step(StepRows(text, [0] * len(text), range(len(text)), [0]), tables[-1:])
    runs_seen = []
    flow = backend.cache.flow
    monkeypatch.setattr(backend.cache, "flow", lambda runs: runs_seen.append(made := flow(runs)) or made)
    last = StepRows([9] * 6, range(6), [len(text) for text in texts], range(6))
    logits = backend.step(last, tables)
    assert [group.size for group in runs_seen[0].groups] == [2, 2, 2]
    for row_V, text in zip(logits, texts, strict=True):
        with torch.no_grad():
            expected_V = model(torch.tensor([[*text, 9]]))[0, -1].numpy()
        np.testing.assert_allclose(row_V, expected_V, atol=1e-5 * np.abs(expected_V).max(), rtol=0)
