"""Models in files: their blocks used as they are, packed once; and kernels that fail where they are tried out."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numba.core.registry import cpu_target

from tessera.errors import InputError
from tessera.formats import export_model, open_model
from tessera.formats.gguf.blocks import KINDS, dequantize
from tessera.generate.cpu import check, fastest, memory, vectors, weights
from tessera.generate.cpu.check import check_kernels
from tessera.generate.cpu.model import CpuModel
from tessera.generate.cpu.support import why_not
from tessera.generate.cpu.vectors import features_of, possible_products
from tessera.generate.requests import StepRows
from tessera.model.decoder import Decoder
from tessera.model.settings import DecoderSettings
from tessera.tokenizers import TOKENIZERS

BYTES = TOKENIZERS["byte"]()
SETTINGS = DecoderSettings(
    context=64, d_model=64, n_layers=2, n_heads=4, d_ff=96, attention={"name": "gqa", "n_kv_heads": 2}
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for packed weights of its own, small ones too; compiled code stays where it is."""
    monkeypatch.setattr(weights, "WORTH", 0)
    monkeypatch.setattr(memory, "cache_folder", lambda: tmp_path / "cache" / "compiled")
    return tmp_path / "cache" / "packed"


def written(path: Path, dtype: str) -> Path:
    torch.manual_seed(0)
    model = Decoder.from_settings(SETTINGS, n_vocab=BYTES.n_vocab)
    export_model(SETTINGS, BYTES.n_vocab, model.state_dict(), BYTES, path, to="gguf", dtype=dtype)
    return path


def logits(model: CpuModel) -> np.ndarray:
    ids = list(b"every row of it")
    return model.step(StepRows(ids, [0] * len(ids), range(len(ids)), range(len(ids))), [[0]])


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "q8_0", "q4_0", "q4_1"])
@torch.inference_mode()
def test_the_blocks_of_a_file_are_used_as_they_are(tmp_path: Path, cache: Path, dtype: str) -> None:
    """As good as the file's numbers: what differs is the rounding of activations alone."""
    source = open_model(written(tmp_path / "model.gguf", dtype))
    made = CpuModel.from_source(source, n_threads=1, check=False)
    assert dtype in made.storages
    found, expected = logits(made), source.build()(torch.tensor([list(b"every row of it")]))[0].numpy()
    assert (found - expected).std() < (1e-6 if dtype == "fp32" else 0.02) * expected.std()
    for name in ("blocks.0.attention.query.weight", "blocks.1.feed_forward.output.weight"):
        kind, rows = source.blocks(name)
        numbers = dequantize(KINDS[kind], rows().tobytes())
        np.testing.assert_array_equal(numbers, source.array(name).ravel())


def test_packed_weights_are_kept_and_read_again(tmp_path: Path, cache: Path) -> None:
    source, said = open_model(written(tmp_path / "model.gguf", "q8_0")), []
    first = logits(CpuModel.from_source(source, check=False, say=said.append))
    assert len(said) == 1 and "packing" in said[0]
    np.testing.assert_array_equal(logits(CpuModel.from_source(source, check=False, say=said.append)), first)
    assert len(said) == 1
    (kept,) = cache.iterdir()
    content = bytearray(kept.read_bytes())
    content[-100] ^= 1
    kept.write_bytes(content)
    np.testing.assert_array_equal(logits(CpuModel.from_source(source, check=False, say=said.append)), first)
    assert len(said) == 2
    kept.write_bytes(content[:-7])
    np.testing.assert_array_equal(logits(CpuModel.from_source(source, check=False, say=said.append)), first)
    assert len(said) == 3


def test_a_model_of_many_matrices_is_kept(tmp_path: Path) -> None:
    layout, content = [["a matrix", number] for number in range(10_000)], np.arange(10_000).view(np.uint8)
    memory.keep_packed(tmp_path / "kept", layout, content)
    np.testing.assert_array_equal(memory.read_packed(tmp_path / "kept", layout), content)
    assert memory.read_packed(tmp_path / "kept", layout[1:]) is None


def test_another_file_at_the_same_place_is_another_model(tmp_path: Path, cache: Path) -> None:
    path, said = tmp_path / "model.gguf", []
    first = logits(CpuModel.from_source(open_model(written(path, "q8_0")), check=False))
    path.unlink()
    second = logits(CpuModel.from_source(open_model(written(path, "q4_1")), check=False, say=said.append))
    assert not np.array_equal(first, second) and len(said) == 1
    assert len(list(cache.iterdir())) == 1  # what belongs to no file any more is gone


def test_where_nothing_can_be_kept_it_still_runs(tmp_path: Path, cache: Path) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("no folder")
    source = open_model(written(tmp_path / "model.gguf", "q8_0"))
    assert np.isfinite(logits(CpuModel.from_source(source, check=False))).all()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"position": "learned"}, "position is 'learned'"),
        ({"attention": {"name": "gqa", "window": 8}}, "window"),
        ({"attention": "mla"}, "'mla'"),
        ({"feed_forward": "moe"}, "'moe'"),
        ({"placement": "sandwich"}, "'sandwich'"),
        ({"logit_cap": 30.0}, "capped"),
        ({"d_head": 24}, "24 wide"),
        ({"embedding": "ngram"}, "'ngram'"),
    ],
)
def test_what_has_no_kernels_says_why(tmp_path: Path, settings: dict, reason: str) -> None:
    chosen = DecoderSettings(**{"context": 64, "d_model": 64, "n_layers": 1, "n_heads": 4} | settings)
    assert reason in str(why_not(chosen))
    with pytest.raises(InputError, match="no kernels"):
        CpuModel.from_source(replace(open_model(written(tmp_path / "m.gguf", "fp32")), settings=chosen), check=False)


def test_a_llama_has_kernels() -> None:
    assert why_not(SETTINGS) is None


@pytest.fixture
def untried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which the kernels have not been tried out."""
    note = tmp_path / "worked"
    monkeypatch.setattr(check, "_note", lambda: note)
    return note


def fails_by(monkeypatch: pytest.MonkeyPatch, code: int, errors: str = "", output: str = "") -> None:
    done = subprocess.CompletedProcess([], code, output, errors)
    monkeypatch.setattr(check.subprocess, "run", lambda *args, **settings: done)


def test_a_crash_of_the_kernels_is_told(untried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_by(monkeypatch, -signal.SIGILL)
    with pytest.raises(InputError, match="SIGILL; the torch path"):
        check_kernels(lambda line: None)
    fails_by(monkeypatch, 1, "something\nthe logits of q8_0 are off by 3 of their spread\n")
    with pytest.raises(InputError, match="q8_0 are off"):
        check_kernels(lambda line: None)
    assert not untried.exists()


def test_a_process_that_crashes_is_noticed(untried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one: this module, run as the trial is, ends itself."""
    module = untried.parent / "crashes.py"
    module.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(check, "MODULE", "crashes")
    monkeypatch.setattr(sys, "path", [str(untried.parent), *sys.path])
    with pytest.raises(InputError, match="SIGSEGV"):
        check_kernels(lambda line: None)


def test_what_worked_is_not_tried_again(untried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preferred: list[str] = []
    monkeypatch.setattr(vectors, "_preferred", preferred)
    fails_by(monkeypatch, 0, output="avx2\n")
    said: list[str] = []
    check_kernels(said.append)
    assert untried.exists() and len(said) == 1 and preferred == ["avx2"]
    preferred.clear()
    fails_by(monkeypatch, 1)
    check_kernels(said.append)
    assert len(said) == 1 and preferred == ["avx2"]


def test_the_fastest_product_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that there are, whichever the clock says; what the processor cannot do is not made."""
    vnni = {"avx512f", "avx512bw", "avx512vnni", "avx2"}
    monkeypatch.setattr(fastest, "features_of", lambda context: vnni)
    for name in ("vnni", "avx2", "plain"):
        monkeypatch.setattr(fastest, "_seconds", lambda each, name=name: 1.0 + (each != name))
        assert fastest.fastest_product() == name
    monkeypatch.setattr(vectors, "_preferred", ["avx2"])
    assert [vectors.byte_product(each) for each in (vnni, {"avx2"}, set())] == ["avx2", "avx2", "plain"]
    monkeypatch.setattr(vectors, "_preferred", ["vnni"])
    assert [vectors.byte_product(each) for each in (vnni, {"avx2"}, set())] == ["vnni", "avx2", "plain"]


@pytest.mark.slow
@pytest.mark.parametrize("features", [None, "", "+avx2,+fma,+f16c"])
def test_the_trial_itself(features: str | None) -> None:
    """On this processor, on a plain one and on one with AVX2."""
    other = {} if features is None else {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    environment = os.environ | other | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "tessera.generate.cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    known = features_of(cpu_target.target_context) if features is None else {part[1:] for part in features.split(",")}
    assert done.stdout.strip() in possible_products(known)
