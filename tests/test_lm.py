"""The five-line face: new, fit, generate, save, load."""

import base64
import json
import math
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import tessera
from tessera.errors import DamagedError, InputError, SettingError, TesseraError
from tessera.lm import LM
from tessera.optim import OPTIMIZERS
from tessera.tokenizers import TOKENIZERS, Tokenizer, load_tokenizer

SHAPE: dict[str, Any] = {"d_model": 32, "n_heads": 2, "d_ff": 64, "n_layers": 1, "context": 32}
TEXTS = ["hello world", "how are you", "i am a bot"]
SENTENCE = "the quick brown fox jumps over the lazy dog"
SPECS: dict[str, Any] = {
    "char": "char",
    "word": "word",
    "byte": "byte",
    "bpe": {"name": "bpe", "vocab_size": 264},
    "bpe-naive": {"name": "bpe-naive", "vocab_size": 262},
    "unigram": {"name": "unigram", "vocab_size": 274},
    "bpe-pieces": {"name": "bpe-pieces", "vocab_size": 280},
    "symbols": "symbols",
    "bins": "bins",
}


def logits(lm: LM, text: str) -> torch.Tensor:
    with torch.inference_mode():
        return lm.model.eval()(torch.tensor([lm.tokenizer.encode(text)]))


def test_the_five_lines() -> None:
    lm = tessera.LM.new("hello world", d_model=64, n_heads=4, d_ff=128, n_layers=2, context=64, tokenizer="char")
    heard: list[tuple[int, float]] = []
    history = lm.fit(TEXTS, epochs=5, lr=0.01, callback=lambda epoch, loss: heard.append((epoch, loss)))
    assert len(history) == 5
    assert heard == list(enumerate(history, start=1))
    assert history[-1] < history[0]
    text = lm.generate("hel", max_tokens=10)
    assert isinstance(text, str)
    assert len(text) <= 10
    assert lm.n_params == sum(parameter.numel() for parameter in lm.model.parameters())
    # "hello world" has no "a", which "how are you" has: it is learned as <unk>, and decodes to something defined.
    assert lm.tokenizer.decode(lm.tokenizer.encode("ha")) == "h\ufffd"


def test_the_first_loss_is_that_of_guessing() -> None:
    lm = LM.new(SENTENCE, **SHAPE | {"context": 64})
    ids = torch.tensor(lm.tokenizer.encode(SENTENCE))
    before = F.cross_entropy(logits(lm, SENTENCE)[0, :-1], ids[1:]).item()
    assert before == pytest.approx(math.log(lm.tokenizer.n_vocab), rel=0.1)


def test_it_learns_a_sentence_by_heart() -> None:
    lm = LM.new(SENTENCE, **SHAPE | {"context": 64})
    history = lm.fit([SENTENCE], epochs=60, lr=0.01)
    assert history[0] > 2.5
    assert history[-1] < 0.3
    assert lm.generate("the q", temperature=0, max_tokens=100) == SENTENCE.removeprefix("the q")
    likeliest = lm.predict("the quick brown f")
    assert next(iter(likeliest)) == "o"
    assert likeliest["o"] > 0.8


def test_fit_reports_the_mean_over_the_targets_of_each_epoch() -> None:
    lm = LM.new(TEXTS, **SHAPE)
    expected = []
    for text in TEXTS:
        ids = [*lm.tokenizer.encode(text), lm.tokenizer.end_id]
        with torch.inference_mode():
            out = lm.model(torch.tensor([ids[:-1]]))[0]
        expected.append((F.cross_entropy(out, torch.tensor(ids[1:]), reduction="sum").item(), len(ids) - 1))
    mean = sum(nats for nats, _ in expected) / sum(n for _, n in expected)
    assert lm.fit(TEXTS, epochs=1, lr=1e-9, batch_size=2, optimizer="sgd") == [pytest.approx(mean, rel=1e-5)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name: str) -> None:
    lm = LM.new(TEXTS, **SHAPE)
    history = lm.fit(TEXTS, epochs=12, lr=0.5 if name.startswith("sgd") else 0.01, optimizer=name)
    assert history[-1] < 0.9 * history[0]


def test_fit_takes_specs_and_tells_mistakes_before_it_learns() -> None:
    lm = LM.new(TEXTS, **SHAPE)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    wrong: list[dict[str, Any]] = [
        {"optimizer": "adamm"},
        {"optimizer": {"name": "sgd", "nesterovv": True}},
        {"schedule": "cosinus"},
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": -1.0},
        {"clip": -1.0},
    ]
    for settings in wrong:
        with pytest.raises(SettingError):
            lm.fit(TEXTS, **settings)
    with pytest.raises(InputError, match="no text to learn from"):
        lm.fit(["", ""])
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
    spec = {"name": "sgd", "momentum": 0.5}
    assert len(lm.fit(TEXTS, optimizer=spec, schedule={"name": "linear", "warmup": 1}, epochs=2)) == 2  # type: ignore[arg-type]


def test_the_seed_decides_everything() -> None:
    def learned(seed: int) -> tuple[list[float], str]:
        lm = LM.new(TEXTS, **SHAPE, dropout=0.1, seed=seed)
        return lm.fit(TEXTS, epochs=3, batch_size=1, seed=seed), lm.generate("h", seed=seed, max_tokens=20)

    assert learned(1) == learned(1)
    assert learned(1)[0] != learned(2)[0]


@pytest.mark.parametrize("store", ["files", "sqlite"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, kind: str, store: str) -> None:
    texts = ["1 2 3", "2, 4, 6", "-1 0.5"] if kind == "bins" else TEXTS
    lm = LM.new(texts, tokenizer=SPECS[kind], **SHAPE, attention={"name": "gqa", "n_kv_heads": 1}, position="learned")
    lm.fit(texts, epochs=2)
    lm.save(tmp_path / "run", store=store)
    if store == "sqlite":  # one file is the run
        shutil.copy(tmp_path / "run" / "run.db", tmp_path / "alone.db")
        shutil.rmtree(tmp_path / "run")
    loaded = LM.load(tmp_path / ("run" if store == "files" else "alone.db"))
    assert loaded.tokenizer.fingerprint == lm.tokenizer.fingerprint
    assert loaded.settings == lm.settings
    assert loaded.n_params == lm.n_params
    assert torch.equal(logits(loaded, texts[1]), logits(lm, texts[1]))
    sampling = {"seed": 5, "max_tokens": 12, "temperature": 0.8, "top_k": 20, "top_p": 0.9}
    prompt = texts[0].split()[0]
    assert loaded.generate(prompt, **sampling) == lm.generate(prompt, **sampling)


def test_a_loaded_model_learns_on(tmp_path: Path) -> None:
    lm = LM.new(TEXTS, **SHAPE)
    first = lm.fit(TEXTS, epochs=5, lr=0.01)
    lm.save(tmp_path / "run")
    second = LM.load(tmp_path / "run").fit(TEXTS, epochs=5, lr=0.01)
    assert second[-1] < first[-1]


def test_saving_over_a_run_is_refused(tmp_path: Path) -> None:
    lm = LM.new(TEXTS, **SHAPE)
    lm.save(tmp_path / "run")
    before = (tmp_path / "run" / "run.db").read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        lm.save(tmp_path / "run")
    assert (tmp_path / "run" / "run.db").read_bytes() == before


def test_a_damaged_save_is_told(tmp_path: Path) -> None:
    LM.new(TEXTS, **SHAPE).save(tmp_path / "run")
    (path,) = (tmp_path / "run" / "checkpoints").glob("*/model.safetensors")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"model\.safetensors"):
        LM.load(tmp_path / "run")
    with pytest.raises(InputError, match="no such run"):
        LM.load(tmp_path / "nothing")


def test_predict_is_the_softmax_of_the_last_logits() -> None:
    lm = LM.new(TEXTS, **SHAPE)
    lm.fit(TEXTS, epochs=2)
    expected = logits(lm, "hello")[0, -1].softmax(-1)
    found = lm.predict("hello")
    assert sum(found.values()) == pytest.approx(1.0)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    for character in "helo wrd":
        (id,) = lm.tokenizer.encode(character)
        assert found[character] == pytest.approx(expected[id].item(), rel=1e-5)
    assert list(lm.predict("hello", top=3).items()) == list(found.items())[:3]


def test_generate_says_what_it_does_not_know() -> None:
    lm = LM.new(TEXTS, **SHAPE)
    with pytest.raises(SettingError, match="did you mean 'top_p'"):
        lm.generate("h", topp=0.5)
    with pytest.raises(SettingError, match="temperature = -1"):
        lm.generate("h", temperature=-1)
    with pytest.raises(InputError, match=r"40 tokens long and the model's context is 32"):
        lm.generate("h" * 40)
    assert len(lm.generate("h" * 40, truncate=True, max_tokens=5, temperature=0)) <= 5
    answers = lm.generate("h", n=3, max_tokens=4)
    assert [type(answer) for answer in answers] == [str, str, str]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_head": 2}, "did you mean 'n_heads'"),
        ({"d_model": 30, "n_heads": 4}, "a multiple of n_heads"),
        ({"tokenizer": "chars"}, "did you mean 'char'"),
        ({"tokenizer": "byte", "vocab": "x"}, "only these take a vocabulary"),
        ({"vocab": "missing.txt"}, "no such file"),
        ({"norm": "layers"}, "did you mean 'layer'"),
    ],
)
def test_new_tells_mistakes(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TesseraError, match=said):
        LM.new("hello", **settings)


def test_no_text_is_told() -> None:
    with pytest.raises(InputError):
        LM.new("")


def ranks_file(path: Path) -> Path:
    """A tiktoken file: the 256 bytes, then "he" and "ll"."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"he", b"ll"]
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The test's folder over http."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("over", ["file", "http"])
def test_a_vocabulary_comes_from_a_file_or_a_url(tmp_path: Path, served: str, over: str) -> None:
    def where(path: Path) -> str:
        return str(path) if over == "file" else f"{served}/{path.name}"

    ranks = where(ranks_file(tmp_path / "some.tiktoken"))
    lm = LM.new(tokenizer={"name": "bpe", "pattern": "gpt2"}, vocab=ranks, **SHAPE)  # type: ignore[arg-type]
    assert lm.tokenizer.encode("hello") == [256, 257, ord("o")]
    assert lm.model.n_vocab == lm.tokenizer.n_vocab

    (tmp_path / "words.txt").write_text("hello\nworld\n", encoding="utf-8")
    lm = LM.new(tokenizer="word", vocab=where(tmp_path / "words.txt"), **SHAPE)
    assert lm.tokenizer.decode(lm.tokenizer.encode("Hello, new world!")) == "hello <unk> world"

    lm.tokenizer.save(tmp_path / "tokenizer.json")
    again = LM.new(tokenizer="word", vocab=where(tmp_path / "tokenizer.json"), **SHAPE)
    assert again.tokenizer.fingerprint == lm.tokenizer.fingerprint


def test_a_skipped_checkpoint_is_said(tmp_path: Path) -> None:
    lm = LM.new(TEXTS, **SHAPE)
    lm.save(tmp_path / "run")
    with tessera.Run.open(tmp_path / "run", train=True) as run:
        tensors = {f"model.{name}": torch.zeros_like(t) for name, t in lm.model.state_dict().items()}
        run.checkpoints.write(5, tensors, {}, keep=2)
    (tmp_path / "run" / "checkpoints" / "step-000005" / "model.safetensors").write_bytes(b"")
    said: list[str] = []
    loaded = LM.load(tmp_path / "run", say=said.append)
    assert torch.equal(loaded.model.head_weight, lm.model.head_weight)
    assert len(said) == 1
    assert "step-000005/model.safetensors is damaged" in said[0]
    with pytest.warns(UserWarning, match="step-000005"):
        LM.load(tmp_path / "run")
    with pytest.raises(DamagedError):
        LM.load(tmp_path / "run", step=5)


def test_the_saved_folder_is_a_run_like_any_other(tmp_path: Path) -> None:
    lm = LM.new(TEXTS, **SHAPE)
    lm.save(tmp_path / "run")
    tokenizer: Tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer.json")
    assert tokenizer.fingerprint == lm.tokenizer.fingerprint
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["model"]["d_model"] == SHAPE["d_model"]
