"""Each piece's output for fixed weights, kept in `snapshots/`: a change of numbers is a decision, not an accident.

TESSERA_WRITE_SNAPSHOTS=1 writes them anew.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tessera.config import Spec, build
from tessera.model.attention import ATTENTIONS
from tessera.model.block import PLACEMENTS
from tessera.model.decoder import Decoder
from tessera.model.feedforward import FEED_FORWARDS
from tessera.model.flow import Flow
from tessera.model.linear import Embedding, Linear
from tessera.model.norm import NORMS
from tessera.model.position import POSITIONS, Position
from tessera.model.rope_scaling import ROPE_SCALINGS
from tessera.ops.attention_plain import plain_attention
from tessera.ops.loss import cross_entropy, linear_cross_entropy
from tessera.ops.softmax import log_softmax, softmax

FOLDER = Path(__file__).parent / "snapshots"
SHAPE = {"context": 8, "d_model": 8, "n_heads": 4, "d_head": 2, "d_ff": None, "bias": True, "n_layers": 2, "n_vocab": 5}


def wave(*shape: int, speed: float = 1.0) -> Tensor:
    """Fixed numbers that look like anything, from no random generator."""
    n = torch.Size(shape).numel()
    return torch.sin(speed * torch.arange(1, n + 1, dtype=torch.float64) ** 1.1).float().view(shape)


def filled(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(wave(*parameter.shape, speed=1.3 + 0.1 * i))
    return module.eval()


def made(registry: dict, name: str, **settings) -> nn.Module:
    return filled(build(registry, Spec(name, settings), **SHAPE))


NEEDED = {
    "mla": {"d_latent": 6, "d_rope": 2, "d_nope": 4, "d_value": 3},
    "moe": {"n_experts": 3, "n_active": 2},
    "linear": {"factor": 2.0},
    "dynamic-ntk": {"factor": 2.0, "original_context": 4},
    "yarn": {"factor": 2.0, "original_context": 4},
    "llama3": {"factor": 2.0, "low_factor": 1.0, "high_factor": 4.0, "original_context": 8},
}


def position(name: str, **settings) -> list[Tensor]:
    piece, flow = made(POSITIONS, name, **settings), Flow(start=2, length=3)
    outputs = [piece.embed(wave(1, 3, 8), flow), piece.rotate(wave(1, 3, 4, 2), flow)]
    return outputs if piece.bias(flow, 5) is None else [*outputs, piece.bias(flow, 5)]


def rotation(**settings) -> Tensor:
    rope = build(POSITIONS, Spec("rope", settings), **SHAPE | {"d_head": 8})
    return rope.rotate(wave(1, 3, 2, 8), Flow(start=2, length=3))


def attention(name: str, **settings) -> Tensor:
    x_BTD = wave(1, 5, 8)
    return made(ATTENTIONS, name, **NEEDED.get(name, {}), **settings)(x_BTD, Position(), Flow.of(x_BTD))


def feed_forward(name: str, **settings) -> Tensor:
    return made(FEED_FORWARDS, name, **NEEDED.get(name, {}), **settings)(X, Flow.of(X))


def decoder(**settings) -> Tensor:
    shape = {"n_vocab": 5, "context": 8, "d_model": 8, "n_layers": 2, "n_heads": 4}
    return filled(Decoder(**(shape | settings)))(torch.tensor([[0, 1, 2, 3, 4]]))


X, TARGETS = wave(1, 3, 8), torch.tensor([1, -100, 4])
PIECES: dict[str, Callable[[], Tensor | list[Tensor]]] = {
    "linear": lambda: filled(Linear(d_in=8, d_out=3, bias=True))(X),
    "embedding": lambda: filled(Embedding(n_vocab=5, d_model=3))(torch.tensor([[4, 0]])),
    "softmax": lambda: [softmax(X), log_softmax(X)],
    "loss": lambda: [cross_entropy(X[0], TARGETS), linear_cross_entropy(X[0], wave(5, 8, speed=2.0), TARGETS)],
    "plain-attention": lambda: plain_attention(wave(1, 4, 3, 2), wave(1, 2, 5, 2), wave(1, 2, 5, 2, speed=2.0)),
    **{f"position-{name}": lambda name=name: position(name) for name in POSITIONS},
    **{f"norm-{name}": lambda name=name: made(NORMS, name)(X) for name in NORMS},
    **{
        f"position-rope-{name}": lambda name=name: rotation(scaling={"name": name} | NEEDED[name])
        for name in ROPE_SCALINGS
    },
    "position-rope-interleaved": lambda: rotation(layout="interleaved"),
    "position-rope-share": lambda: rotation(share=0.5),
    **{f"feed-forward-{name}": lambda name=name: feed_forward(name) for name in FEED_FORWARDS},
    "feed-forward-moe-shared": lambda: feed_forward("moe", n_shared=1, score="sigmoid", scale=2.0),
    **{f"attention-{name}": lambda name=name: attention(name) for name in ATTENTIONS},
    "attention-gqa-grouped": lambda: attention("gqa", n_kv_heads=2),
    "attention-gqa-window": lambda: attention("gqa", window=2),
    "attention-gqa-window-keeps": lambda: attention("gqa", window=2, window_keeps=1),
    "attention-gqa-qk-norm": lambda: attention("gqa", qk_norm=True),
    "attention-gqa-score-cap": lambda: attention("gqa", score_cap=0.5, scale=0.7),
    "attention-gqa-sinks": lambda: attention("gqa", sinks=True),
    "attention-mla-query": lambda: attention("mla", d_query_latent=5),
    **{f"decoder-{name}": lambda name=name: decoder(placement=name) for name in PLACEMENTS},
    "decoder-value-residual": lambda: decoder(attention={"name": "gqa", "value_residual": True}),
    "decoder-capped": lambda: decoder(logit_cap=0.5, embedding_scale=3.0, vocab_multiple=4),
    "decoder-gpt2": lambda: decoder(position="learned", norm="layer", feed_forward="gelu", tied=True, bias=True),
}


@pytest.mark.parametrize("name", PIECES)
def test_output_is_what_it_was(name: str) -> None:
    made = PIECES[name]()
    outputs = [output.detach() for output in (made if isinstance(made, list) else [made])]
    path = FOLDER / f"{name}.json"
    if os.environ.get("TESSERA_WRITE_SNAPSHOTS"):
        rounded = [
            {"shape": list(one.shape), "values": [round(x, 6) for x in one.flatten().tolist()]} for one in outputs
        ]
        path.write_text(json.dumps(rounded) + "\n")
    kept = json.loads(path.read_text())
    for output, snapshot in zip(outputs, kept, strict=True):
        expected = torch.tensor(snapshot["values"]).view(snapshot["shape"])
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_no_snapshot_without_its_piece() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(PIECES)
