"""`tessera quantize`: a run in codes, what it says of it, and what can be done with it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cli.conftest import Tessera
from tests.small import TEXT

from tessera.formats import open_model
from tessera.formats.gguf.reader import read_gguf
from tessera.generate.quantize import KINDS, QuantizedEmbedding, QuantizedLinear
from tessera.lm import LM
from tessera.models import RunSource, open_any


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that an architecture of GGUF files holds."""
    folder = tmp_path_factory.mktemp("quantize")
    lm = LM.new(tokenizer="byte", d_model=64, n_heads=4, n_layers=2, context=32, d_ff=96, tied=True)
    lm.save(folder / "model")
    (folder / "text.txt").write_text(TEXT)
    return folder / "model"


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_quantized_run_loads_generates_and_says_what_it_lost(
    tessera: Tessera, source: Path, tmp_path: Path, to: str, method: str
) -> None:
    out, text = tmp_path / "small", source.parent / "text.txt"
    done = tessera("quantize", source, "--to", to, "--method", method, "--text", text, "--out", out, "--samples", 4)
    assert done.code == 0, done.err
    before, after = (float(word.rstrip(",")) for word in done.out.split("perplexity")[1].split()[:3:2])
    assert after == pytest.approx(before, rel=0.05)
    assert "KB before" in done.out
    lm = LM.load(out)
    assert isinstance(lm.model.embedding, QuantizedEmbedding)
    assert isinstance(lm.model.get_submodule("blocks.1.attention.query"), QuantizedLinear)
    assert tessera("generate", out, "-p", "1: the", "--max-tokens", 3, "--temperature", 0).code == 0
    # As floats it is the same model.
    ids = torch.tensor([lm.tokenizer.encode("1: the quick")])
    with torch.inference_mode():
        torch.testing.assert_close(open_any(out).build()(ids), lm.model(ids), rtol=1e-4, atol=1e-5)
    lm.save(tmp_path / "again")
    again = LM.load(tmp_path / "again")
    with torch.inference_mode():
        assert torch.equal(again.model(ids), lm.model(ids))


@pytest.mark.parametrize("to", ["q8_0", "q4_0", "q4_1"])
def test_blocks_go_into_a_gguf_file_as_they_are(tessera: Tessera, source: Path, tmp_path: Path, to: str) -> None:
    out, text = tmp_path / "small", source.parent / "text.txt"
    assert tessera("quantize", source, "--to", to, "--method", "gptq", "--text", text, "--out", out).code == 0
    file = tmp_path / "small.gguf"
    done = tessera("export", out, "--to", "gguf", "--out", file)
    assert done.code == 0, done.err
    run = open_any(out)
    assert isinstance(run, RunSource)
    held, found = read_gguf(file), open_model(file)
    for ours, theirs in (("blocks.1.feed_forward.output", "blk.1.ffn_down"), ("embedding", "token_embd")):
        kept = run.stored[f"{ours}.weight"]
        info = held.tensors[f"{theirs}.weight"]
        assert info.kind.name == kept.kind.name
        content = file.read_bytes()[info.start : info.start + info.n_bytes]
        assert content == kept.parts["blocks"].numpy().tobytes()
    for name in run.names:  # queries and keys too, whose rows are moved
        np.testing.assert_array_equal(found.tensor(name, torch.float32).numpy(), run.tensors[name].numpy())


def test_a_trained_run_is_measured_on_what_it_held_out(tessera: Tessera, run: Path, tmp_path: Path) -> None:
    done = tessera("quantize", run, "--to", "int8", "--method", "awq", "--out", tmp_path / "small")
    assert done.code == 0, done.err
    assert "perplexity" in done.out
    done = tessera("evaluate", tmp_path / "small")
    assert (done.code, "tessera quantize" in done.err, "held out" in done.err) == (2, True, True)


def test_what_is_missing_is_said(tessera: Tessera, source: Path, tmp_path: Path) -> None:
    done = tessera("quantize", source, "--to", "int4", "--method", "gptq", "--out", tmp_path / "a")
    assert (done.code, "--text" in done.err) == (2, True)
    short = tmp_path / "short.txt"
    short.write_text("short")
    done = tessera("quantize", source, "--to", "int4", "--method", "gptq", "--text", short, "--out", tmp_path / "a")
    assert (done.code, "at least 32" in done.err) == (2, True)
    done = tessera("quantize", source, "--to", "int5", "--text", short, "--out", tmp_path / "a")
    assert (done.code, "q4_0" in done.err) == (2, True)
    done = tessera("quantize", source, "--to", "int8", "--text", tmp_path / "no", "--out", tmp_path / "a")
    assert (done.code, "no such file" in done.err) == (2, True)
    assert not (tmp_path / "a").exists()
