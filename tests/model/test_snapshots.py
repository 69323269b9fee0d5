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
from tessera.model.decoder import PLACEMENTS, Decoder
from tessera.model.feedforward import FEED_FORWARDS
from tessera.model.linear import Embedding, Linear
from tessera.model.norm import NORMS
from tessera.model.position import POSITIONS, Position
from tessera.ops.attention import plain_attention
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


def position(name: str) -> list[Tensor]:
    piece = made(POSITIONS, name)
    return [piece.embed(wave(1, 3, 8), 2), piece.rotate(wave(1, 3, 4, 2), 2)]


def attention(name: str, **settings) -> Tensor:
    return made(ATTENTIONS, name, **settings)(wave(1, 5, 8), Position())


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
    **{f"feed-forward-{name}": lambda name=name: made(FEED_FORWARDS, name)(X) for name in FEED_FORWARDS},
    **{f"attention-{name}": lambda name=name: attention(name) for name in ATTENTIONS},
    "attention-gqa-grouped": lambda: attention("gqa", n_kv_heads=2),
    "attention-gqa-window": lambda: attention("gqa", window=2),
    "attention-gqa-qk-norm": lambda: attention("gqa", qk_norm=True),
    **{f"decoder-{name}": lambda name=name: decoder(placement=name) for name in PLACEMENTS},
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
