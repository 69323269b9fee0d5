"""An LM on NumPy alone: trained, asked, saved and opened by either engine; and what needs no PyTorch loads none."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera import LM, engines
from tessera.errors import InputError, SettingError
from tessera.formats import export_model
from tessera.scratch.decoder import Decoder as NumpyDecoder

TEXT = "the cat sat on the mat and the dog sat on the log"
SHAPE = {"d_model": 32, "n_heads": 2, "d_ff": 64, "n_layers": 2, "context": 64}
ROOT = Path(__file__).parents[1]
ABSENT = "import sys; sys.modules.update(dict.fromkeys(['torch', 'numba', 'llvmlite'])); "
"""Whoever imports one of them gets a ModuleNotFoundError."""


def run_python(code: str, *arguments: object) -> str:
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "src"))
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def command(code: str, *arguments: object) -> str:
    """The command line, in a process that begins with `code`."""
    return run_python(
        code + "import sys; sys.argv[0] = 'tessera'; from tessera.cli.main import main; main()", *arguments
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lm = LM.new(TEXT, engine="numpy", **SHAPE)
    before = lm.predict("the c")
    history = lm.fit([TEXT], epochs=40, lr=0.01)
    assert history[-1] < 0.5 < history[0]
    assert lm.predict("the c") != before, "no key and no value outlives the weights that it is of"
    folder = tmp_path_factory.mktemp("numpy") / "run"
    lm.save(folder)
    return folder


def test_what_it_learned_is_opened_by_either_engine(saved: Path) -> None:
    ours, theirs = LM.load(saved, engine="numpy"), LM.load(saved)
    assert isinstance(ours.model, NumpyDecoder) and ours.n_params == theirs.n_params
    ids = np.array([ours.tokenizer.encode(TEXT)])
    with torch.no_grad():
        expected = theirs.model(torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(ours.model.logits(ids), expected, atol=1e-5)
    for how in ({"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9, "seed": 3}):
        asked = {"max_tokens": 30, "n": 2, **how}
        assert ours.generate("the", **asked) == theirs.generate("the", **asked)
    assert ours.predict("the c") == pytest.approx(theirs.predict("the c"), abs=1e-5)


def test_what_pytorch_made_is_opened_and_saved_again(tmp_path: Path) -> None:
    theirs = LM.new(TEXT, norm="layer", position="learned", feed_forward="gelu", bias=True, **SHAPE)
    theirs.fit([TEXT], epochs=3)
    theirs.save(tmp_path / "run")
    export_model(
        theirs.settings, theirs.model.n_vocab, theirs.model.state_dict(), theirs.tokenizer, tmp_path / "m.safetensors",
        to="safetensors",
    )  # fmt: skip
    said = []
    for place in (tmp_path / "run", tmp_path / "m.safetensors"):
        lm = LM.load(place, engine="numpy")
        lm.fit([TEXT], epochs=1)
        lm.save(tmp_path / f"again {place.name}", store="sqlite")
        said.append(LM.load(tmp_path / f"again {place.name}").generate("the", temperature=0, max_tokens=20))
        assert said[-1] == lm.generate("the", temperature=0, max_tokens=20)
    assert said[0] == said[1]


def test_a_draft_and_a_lookup_change_no_text(saved: Path) -> None:
    plain = LM.load(saved, engine="numpy").generate("the", max_tokens=30, seed=1)
    for guessing in ({"lookup": True}, {"draft": saved}):
        assert LM.load(saved, engine="numpy", **guessing).generate("the", max_tokens=30, seed=1) == plain


@pytest.mark.parametrize("how", [{"dtype": "bf16"}, {"cache": "int8"}, {"device": "cuda"}])
def test_what_numpy_has_not_is_refused(saved: Path, how: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(how))):
        LM.load(saved, engine="numpy", **how)
    with pytest.raises(SettingError, match="attention"):
        LM.new(TEXT, engine="numpy", **SHAPE, attention="mla")
    with pytest.raises(SettingError, match="engine"):
        LM.new(TEXT, engine="cpu", **SHAPE)


def test_where_pytorch_and_the_compiler_are_missing(saved: Path, tmp_path: Path) -> None:
    told = command(ABSENT, "generate", saved, "-p", "the", "--max-tokens", 9, "--temperature", 0)
    assert "NumPy computes" in told
    plain = LM.load(saved).generate("the", temperature=0, max_tokens=9)
    assert plain.strip() in told
    assert plain in command(
        ABSENT, "generate", saved, "-p", "the", "--engine", "numpy", "--max-tokens", 9, "--temperature", 0
    )
    code = ABSENT + (
        "import tessera; lm = tessera.LM.new('hello world', d_model=16, n_heads=2, n_layers=1, engine='numpy');"
        "lm.fit(['hello world'], epochs=2); lm.save(sys.argv[1]); print(lm.generate('hel', max_tokens=5, seed=1))"
    )
    said = run_python(code, tmp_path / "made")
    assert said.rstrip("\n") == LM.load(tmp_path / "made").generate("hel", max_tokens=5, seed=1).rstrip("\n")
    with pytest.raises(AssertionError, match="PyTorch is not installed"):
        run_python(ABSENT + "import tessera; tessera.LM.new('hello world')")
    with pytest.raises(AssertionError, match="numba, which is not installed"):
        command(ABSENT, "generate", saved, "--engine", "cpu")


@pytest.mark.parametrize("kind", ["gguf", "run", "safetensors"])
def test_the_kernels_load_no_pytorch(saved: Path, tmp_path: Path, kind: str) -> None:
    lm, place = LM.load(saved), saved
    if kind != "run":
        place = tmp_path / f"m.{kind}"
        given = (lm.settings, lm.model.n_vocab, lm.model.state_dict(), lm.tokenizer)
        try:
            export_model(*given, place, to=kind)
        except SettingError:  # GGUF files have no vocabularies of characters
            other = LM.new(TEXT, tokenizer="byte", **SHAPE)
            given = (other.settings, other.model.n_vocab, other.model.state_dict(), other.tokenizer)
            export_model(*given, place, to=kind)
    end = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules));"
    end += "import tessera.engines; tessera.engines.SMALL = 0;"
    for engine in ("cpu", "auto"):
        arguments = ("generate", place, "-p", "the", "--engine", engine, "--device", "cpu", "--max-tokens", 3)
        assert command(end, *arguments).endswith("False\n")
    lm = LM.load(place, engine="cpu")
    with pytest.raises(InputError, match="opened to generate alone"):
        lm.save(tmp_path / "no")
    assert engines.installed("numba") and not engines.installed("a package of no name")
