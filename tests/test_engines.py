"""Which engine a model gets, what is said about it, and that the text does not depend on it."""

from pathlib import Path

import pytest

from tessera import LM, engines
from tessera.errors import InputError, SettingError
from tessera.generate.engine import Engine

TEXT = "the cat sat on the mat and the dog sat on the log"
LLAMA = {"d_model": 32, "n_heads": 2, "d_ff": 64, "n_layers": 2, "context": 64}
"""Heads of 16, as the kernels want them."""


def saved(folder: Path, **settings: object) -> Path:
    lm = LM.new(TEXT, **(LLAMA | settings))
    lm.fit([TEXT], epochs=30, lr=0.01)
    lm.save(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("engines") / "run")


def text_of(lm: LM) -> str:
    return str(lm.generate("the cat", temperature=0.0, max_tokens=40))


def test_a_small_model_is_left_to_pytorch_and_nothing_is_said(run: Path) -> None:
    lines: list[str] = []
    lm = LM.load(run, engine="auto", say=lines.append)
    assert not isinstance(lm.engine, type(None)) and lm.model.n_params < engines.SMALL
    assert lines == []


def test_a_larger_one_takes_the_kernels(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "SMALL", 0)
    lm = LM.load(run, engine="auto")
    assert text_of(lm) == text_of(LM.load(run))
    with pytest.raises(InputError, match="load it with engine='torch'"):
        _ = lm.model


@pytest.mark.parametrize("settings", [{"dtype": "fp32"}, {"dtype": "q8_0"}, {"cache": "int8"}])
def test_kernels_say_what_pytorch_says(run: Path, settings: dict[str, str]) -> None:
    assert text_of(LM.load(run, engine="cpu", **settings)) == text_of(LM.load(run))  # type: ignore[arg-type]


def test_where_there_are_no_kernels_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "SMALL", 0)
    run = saved(tmp_path / "run", norm="layer")
    lines: list[str] = []
    assert text_of(LM.load(run, engine="auto", say=lines.append)) == text_of(LM.load(run))
    (line,) = lines
    assert "norm is 'layer'" in line and "PyTorch computes instead" in line
    with pytest.raises(InputError, match="norm is 'layer'"):
        LM.load(run, engine="cpu")
    with pytest.raises(InputError, match="norm is 'layer'"):  # PyTorch has no such numbers to fall back to
        LM.load(run, engine="auto", dtype="q8_0")


@pytest.mark.parametrize(
    "settings",
    [
        {"engine": "gpu"},
        {"engine": "cpu", "dtype": "fp16"},
        {"engine": "cpu", "device": "cuda"},
        {"engine": "torch", "dtype": "q8_0"},
        {"engine": "torch", "dtype": "int3"},
        {"engine": "torch", "cache": "fp8"},
        {"lookup": True, "draft": "somewhere"},
    ],
)
def test_what_cannot_be_is_refused(run: Path, settings: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        LM.load(run, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["torch", "cpu"])
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 3}])
def test_guessing_changes_no_text(run: Path, tmp_path: Path, engine: str, sampling: dict[str, float]) -> None:
    smaller = saved(tmp_path / "draft", n_layers=1)
    plain = LM.load(run, engine=engine).generate("the", max_tokens=30, **sampling)
    for guessing in ({"lookup": True}, {"draft": smaller}):
        lm = LM.load(run, engine=engine, **guessing)  # type: ignore[arg-type]
        assert lm.generate("the", max_tokens=30, **sampling) == plain


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_who_guesses_computes_on_the_same_device(run: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    asked: list[str] = []
    monkeypatch.setattr("tessera.model.decoder.Decoder.to", lambda model, device: asked.append(device) or model)
    tokenizer = LM.load(run).tokenizer
    engines.guesser_of(tokenizer, lookup=False, draft=run, engine=engine, device="cuda:1", say=print)
    assert asked[-1] == "cuda:1"


def test_who_guesses_has_the_same_tokens(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    LM.new("other letters", **LLAMA).save(other)
    with pytest.raises(InputError, match="the tokenizer of the one that answers"):
        LM.load(run, draft=other)


def test_an_engine_of_kernels_predicts_as_pytorch_does(run: Path) -> None:
    kernels, plain = LM.load(run, engine="cpu"), LM.load(run)
    assert isinstance(kernels.engine, Engine)
    assert kernels.predict("the c") == pytest.approx(plain.predict("the c"), abs=1e-4)
