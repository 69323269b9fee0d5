"""Every combination of pieces trains, generates from a cache as without one, and survives saving.

All combinations of the pieces as they come; and of their options, every two together at least once.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations, product
from typing import Any

import pytest
import safetensors.torch
import torch

from tessera.model.attention import ATTENTIONS
from tessera.model.block import PLACEMENTS
from tessera.model.decoder import Decoder
from tessera.model.feedforward import FEED_FORWARDS
from tessera.model.flow import Flow
from tessera.model.norm import NORMS
from tessera.model.position import POSITIONS
from tessera.model.rope_scaling import ROPE_SCALINGS

NEEDED = {
    "mla": {"d_latent": 6, "d_rope": 4, "d_nope": 4, "d_value": 3},
    "moe": {"n_experts": 3, "n_active": 2},
    "linear": {"factor": 2.0},
    "dynamic-ntk": {"factor": 2.0, "original_context": 3},
    "yarn": {"factor": 2.0, "original_context": 3},
    "llama3": {"factor": 2.0, "low_factor": 1.0, "high_factor": 4.0, "original_context": 4},
}
"""Small sizes: some pieces need these settings, and others have defaults that are larger than a test wants."""


def spec(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name} | NEEDED.get(name, {}) | options


SLOTS = {
    "position": list(POSITIONS),
    "norm": list(NORMS),
    "placement": list(PLACEMENTS),
    "attention": list(ATTENTIONS),
    "feed_forward": list(FEED_FORWARDS),
}
PIECES = [dict(zip(SLOTS, names, strict=True)) for names in product(*SLOTS.values())]

MOE = [
    {"balance": "bias"},
    {"balance": "none", "z_weight": 0.01, "score": "sigmoid", "scale": 2.0},
    {"n_shared": 1, "normalize": False, "kind": "geglu"},
    {"n_experts": 4, "n_groups": 2, "n_active_groups": 1},
]
GQA = [
    {"n_kv_heads": 2, "window": 3},
    {"n_kv_heads": 1, "window": 3, "window_keeps": 2},
    {"qk_norm": True, "bias": True, "output_bias": False},
    {"score_cap": 2.0, "scale": 0.3},
    {"sinks": True},
    {"value_residual": True, "n_kv_heads": 2},
]
OPTIONS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "position": [
        *((f"rope-{name}", {"position": spec("rope", scaling=spec(name))}) for name in ROPE_SCALINGS),
        ("rope-interleaved", {"position": spec("rope", layout="interleaved")}),
        ("rope-partial", {"position": spec("rope", share=0.5), "d_head": 8}),
        ("rope-every-second", {"position": ["rope", "none"]}),
        *((name, {"position": name}) for name in POSITIONS if name != "rope"),
    ],
    "attention": [
        *(("-".join(map(str, options)), {"attention": spec("gqa", **options)}) for options in GQA),
        ("local-global", {"attention": [spec("gqa", window=3), spec("gqa", n_kv_heads=2)]}),
        ("mla-query", {"attention": spec("mla", d_query_latent=5)}),
        ("mla", {"attention": spec("mla")}),
        ("mla-defaults", {"attention": "mla", "d_head": 8}),
    ],
    "feed_forward": [
        *(("moe-" + "-".join(map(str, options)), {"feed_forward": spec("moe") | options}) for options in MOE),
        ("dense-first", {"feed_forward": ["swiglu", spec("moe")]}),
        ("gelu-bias", {"feed_forward": "gelu", "bias": True}),
    ],
    "embedding": [
        ("table", {"embedding": "table"}),
        ("ngram", {"embedding": spec("ngram", orders=[2, 4], rows=150)}),
    ],
    "head": [
        ("tied", {"tied": True, "embedding_scale": 4.0}),
        ("padded", {"vocab_multiple": 8}),
        ("capped", {"logit_cap": 3.0}),
        ("padded-capped-tied", {"tied": True, "vocab_multiple": 8, "logit_cap": 3.0}),
        ("future", {"n_future": 1}),
    ],
    "placement": [(name, {"placement": name, "norm": norm}) for name, norm in product(PLACEMENTS, ("rms", "layer"))],
}


def every_two(axes: Mapping[str, list[tuple[str, dict[str, Any]]]]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Choices of one entry an axis, so few that any two entries of different axes meet in one of them."""
    names = list(axes)
    open_pairs = {
        ((a, i), (b, j))
        for a, b in combinations(names, 2)
        for i, j in product(range(len(axes[a])), range(len(axes[b])))
    }
    while open_pairs:
        chosen: dict[str, int] = dict(min(open_pairs))
        for axis in names:
            if axis not in chosen:
                chosen[axis] = max(
                    range(len(axes[axis])), key=lambda i, axis=axis: _met(open_pairs, chosen | {axis: i}), default=0
                )
        open_pairs -= {pair for pair in open_pairs if all(chosen[axis] == i for axis, i in pair)}
        entries = [axes[axis][chosen[axis]] for axis in names]
        yield "/".join(name for name, _ in entries), {k: v for _, options in entries for k, v in options.items()}


def _met(pairs: set[Any], chosen: Mapping[str, int]) -> int:
    return sum(all(chosen.get(axis) == i for axis, i in pair) for pair in pairs)


COVERING = list(every_two(OPTIONS))


def build(settings: Mapping[str, Any], seed: int) -> Decoder:
    torch.manual_seed(seed)
    shape = {"n_vocab": 13, "context": 6, "d_model": 16, "n_layers": 2, "n_heads": 4, "d_ff": 24}
    return Decoder(**shape | {"init": {"name": "normal", "std": 0.2}} | settings)


@pytest.mark.parametrize("names", PIECES, ids=lambda names: "-".join(names.values()))
def test_pieces_fit_together(names: dict[str, str]) -> None:
    settings = {slot: name if slot in ("norm", "placement") else spec(name) for slot, name in names.items()}
    trains_caches_and_saves(settings)


@pytest.mark.parametrize(("name", "settings"), COVERING, ids=[name for name, _ in COVERING])
def test_options_fit_together(name: str, settings: dict[str, Any]) -> None:
    trains_caches_and_saves(settings)


def trains_caches_and_saves(settings: Mapping[str, Any]) -> None:
    model = build(settings, seed=1)
    ids = torch.randint(13, (2, 7))
    train_three_steps(model, ids)
    model.eval()
    with torch.no_grad():
        logits = model(ids[:, :-1])
        for sizes in ([1] * 6, [4, 2]):
            cache = model.new_cache(2)
            parts = [model(part, cache) for part in ids[:, :-1].split(sizes, dim=1)]
            assert (torch.cat(parts, dim=1) - logits).abs().max() <= 1e-5 * max(1.0, float(logits.abs().max()))
        other = build(settings, seed=2).eval()
        other.load_state_dict(safetensors.torch.load(safetensors.torch.save(model.state_dict())))
        assert torch.equal(other(ids[:, :-1]), logits)


def train_three_steps(model: Decoder, ids: torch.Tensor) -> None:
    """The loss falls, and a gradient reaches all that is learned (an expert may have had no token)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses, reached = [], set()
    for _ in range(4):
        flow = Flow.of(ids[:, :-1])
        loss = model.loss(model.hidden(ids[:, :-1], flow=flow), ids[:, 1:])
        losses.append(loss.item())
        optimizer.zero_grad()
        sum(flow.losses, loss).backward()
        reached |= {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
        optimizer.step()
        model.updated()
    left = [name for name, _ in model.named_parameters() if name not in reached and not name.startswith("future.")]
    assert not left, "no gradient reaches them"
    assert losses[3] < losses[0]


def test_every_two_options_meet() -> None:
    met = [set(name.split("/")) for name, _ in COVERING]
    for one, other in combinations(OPTIONS.values(), 2):
        assert all(any({a, b} <= names for names in met) for (a, _), (b, _) in product(one, other))
    assert len(COVERING) < 160
