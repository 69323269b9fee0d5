"""The angles that the kernels read are those of the model that PyTorch builds, scaled or not."""

import numpy as np
import pytest

from tessera.config import check
from tessera.generate.cpu.angles import cosines_and_sines
from tessera.model.plain import plain_decoder
from tessera.model.position import RotaryPosition
from tessera.model.settings import DecoderSettings


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"base": 500_000.0, "share": 0.5},
        {"scaling": {"name": "llama3", "factor": 8.0, "original_context": 64}},
        {"scaling": {"name": "dynamic-ntk", "factor": 2.0, "original_context": 64}},
    ],
)
def test_the_angles(spec: dict) -> None:
    content = {"context": 300, "d_model": 64, "n_heads": 2, "position": {"name": "rope", **spec}}
    settings = check(DecoderSettings, content)
    model = plain_decoder(settings, n_vocab=9)
    expected = RotaryPosition(context=300, d_head=32, **settings.pattern("position")[0].settings)
    for found, table in zip(cosines_and_sines(model, 200), (expected.cos, expected.sin), strict=True):
        assert found.dtype == np.float32 and found.shape == (200, model.n_pairs)
        np.testing.assert_allclose(found, table[:200].numpy(), atol=1e-6)
