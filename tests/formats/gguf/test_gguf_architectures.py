"""Every architecture: a random model of transformers goes to GGUF and back, to llama.cpp, and to transformers again."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.formats.foreign_models import N_VOCAB, YARN, ids, make, tokenizer
from tests.formats.gguf.llama_cpp import ask
from torch import Tensor

from tessera.errors import FormatError, SettingError
from tessera.formats import open_model
from tessera.formats.gguf import open_gguf
from tessera.formats.gguf.export import export_gguf
from tessera.formats.gguf.reader import read_gguf
from tessera.formats.gguf.values import write_entry
from tessera.formats.gguf.writer import DTYPES
from tessera.model.decoder import Decoder, DecoderSettings
from tessera.tokenizers.byte import ByteTokenizer

NEAR = 0.03  # nats a token: llama.cpp keeps keys and values in half precision
SQUARE = {"query_pre_attn_scalar": 12, "head_dim": 12}
EVEN_YARN = YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}

# case -> (its name in FAMILIES, what is changed, the architecture, what transformers reads of it: "all", or the
# "weights" only where it takes no notice of some sizes in the file, or nothing)
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "gpt2": ("gpt2", {}, "gpt2", "weights"),
    "gpt2-untied": ("gpt2-untied", {}, "gpt2", ""),
    "llama": ("llama", {}, "llama", "all"),
    "llama-tied": ("llama-tied", {}, "llama", "all"),
    "llama-biases": ("llama-biases", {}, "llama", ""),
    "llama-head": ("llama-head", {}, "llama", "all"),
    "llama-3": ("llama-3", {}, "llama", ""),
    "llama-linear": ("llama-linear", {}, "llama", ""),
    "llama-yarn": ("llama-yarn", {}, "llama", ""),
    "mistral": ("mistral-whole", {}, "llama", "all"),
    "mistral-window": ("mistral", {"sliding_window": 24}, "llama", ""),
    "qwen2": ("qwen2", {}, "qwen2", "all"),
    "qwen3": ("qwen3", {}, "qwen3", "weights"),
    "gemma2": ("gemma2", {**SQUARE, "num_hidden_layers": 4}, "gemma2", "weights"),
    "gemma2-capped": ("gemma2-capped", {"query_pre_attn_scalar": 8}, "gemma2", "weights"),
    "gemma3": ("gemma3", {}, "gemma3", ""),
    "mixtral": ("mixtral", {}, "mixtral", ""),
    "deepseek": ("deepseek", {}, "deepseek2", ""),
    "deepseek-latent": ("deepseek", {"q_lora_rank": 16, "rope_parameters": EVEN_YARN}, "deepseek2", ""),
}


def loss(logits_TV: Tensor, row: list[int]) -> float:
    logs_TV = logits_TV.log_softmax(-1)
    return -logs_TV[:-1].gather(1, torch.tensor(row[1:])[:, None]).mean().item()


def check_choices(here_TV: Tensor, there_TV: Tensor) -> None:
    """The same next token after every beginning where the margin between the best two here is above `NEAR`."""
    best_T2 = here_TV.topk(2).values
    clear_T = best_T2[:, 0] - best_T2[:, 1] > NEAR
    assert clear_T.float().mean() >= 0.7
    assert torch.equal(there_TV.argmax(-1)[clear_T], here_TV.argmax(-1)[clear_T])


@pytest.mark.parametrize("case", CASES)
def test_the_same_logits_here_and_there(case: str, tmp_path: Path) -> None:
    name, changed, family, known_there = CASES[case]
    theirs = make(name, **changed)
    theirs.save_pretrained(tmp_path / "in")
    source = open_model(tmp_path / "in")
    ours = source.build()
    path = tmp_path / "model.gguf"
    export_gguf(source.settings, source.n_vocab, ours.state_dict(), tokenizer(), path, dtype="fp32")
    again = open_gguf(path)
    assert again.family == family
    x = ids(2, 24)
    with torch.no_grad():
        expected = theirs(x).logits
        logits = again.build()(x)
    assert (logits - expected).abs().max() <= 1e-4
    row = x[0].tolist()
    answer = ask(path, N_VOCAB, ids=row)
    check_choices(expected[0], answer.logs_NV)
    assert abs(loss(answer.logs_NV, row) - loss(expected[0], row)) <= NEAR
    if known_there and importlib.util.find_spec("accelerate"):  # without it, transformers reads no GGUF
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path,
            gguf_file=path.name,
            dtype=torch.float32,
            attn_implementation="eager",
            **({"config": theirs.config} if known_there == "weights" else {}),
        )
        with torch.no_grad():
            assert (loaded.eval()(x).logits - expected).abs().max() <= 1e-3


def small(**settings: Any) -> tuple[DecoderSettings, Decoder]:
    shape = {"context": 40, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 64}
    checked = DecoderSettings(**{**shape, **settings})
    torch.manual_seed(0)
    model = Decoder.from_settings(checked, n_vocab=N_VOCAB).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return checked, model


def export(tmp_path: Path, settings: DecoderSettings, model: Decoder, dtype: str = "fp32") -> tuple[Path, list[str]]:
    path = tmp_path / "model.gguf"
    return path, export_gguf(settings, N_VOCAB, model.state_dict(), tokenizer(), path, dtype=dtype)


V3 = {
    "name": "moe", "n_experts": 8, "n_active": 3, "d_expert": 20, "n_shared": 1, "score": "sigmoid", "scale": 2.5,
    "balance": "bias", "n_groups": 4, "n_active_groups": 2, "group_score": "top2",
}  # fmt: skip
MLA_HERE = {"name": "mla", "d_latent": 12, "d_query_latent": 16, "d_rope": 8, "d_nope": 6, "d_value": 10, "eps": 1e-5}
OURS: dict[str, tuple[dict[str, Any], str]] = {
    "padded vocabulary": ({"vocab_multiple": 64}, "llama"),
    "tied and padded": ({"vocab_multiple": 64, "tied": True}, "llama"),
    "interleaved rotation": ({"position": {"name": "rope", "layout": "interleaved"}}, "llama"),
    "interleaved for halves": (
        {"position": {"name": "rope", "layout": "interleaved"}, "attention": {"name": "gqa", "qk_norm": True}},
        "qwen3",
    ),
    "a layout for each layer": ({"position": [{"name": "rope"}, {"name": "rope", "layout": "interleaved"}]}, "llama"),
    "as the demo": ({"attention": {"name": "gqa", "qk_norm": True}, "tied": False}, "qwen3"),
    "further tokens predicted in training": ({"n_future": 1}, "llama"),
    "a window of the whole context": ({"attention": {"name": "gqa", "window": 64}}, "llama"),
    "sigmoid experts": (
        {
            "attention": MLA_HERE,
            "position": {"name": "rope", "layout": "interleaved"},
            "feed_forward": ["swiglu", V3],
        },
        "deepseek2",
    ),
}


@pytest.mark.parametrize("case", OURS)
def test_models_of_our_own(case: str, tmp_path: Path) -> None:
    settings, model = small(**OURS[case][0])
    for name, buffer in model.named_buffers():
        if name.endswith("router_bias"):
            buffer.normal_(std=0.2)
    path, _ = export(tmp_path, settings, model)
    again = open_gguf(path)
    assert again.family == OURS[case][1]
    x = ids(1, 24)
    with torch.no_grad():
        expected = model(x)
        assert (again.build()(x) - expected).abs().max() <= 1e-5
    row = x[0].tolist()
    answer = ask(path, N_VOCAB, ids=row)
    check_choices(expected[0], answer.logs_NV)
    assert abs(loss(answer.logs_NV, row) - loss(expected[0], row)) <= NEAR


@pytest.mark.parametrize(("dtype", "most"), [("fp16", 0.01), ("bf16", 0.1), ("q8_0", 0.1), ("q4_0", 2), ("q4_1", 2)])
def test_narrower_types_load_here_and_there(dtype: str, most: float, tmp_path: Path) -> None:
    settings, model = small(attention={"name": "gqa", "n_kv_heads": 2})
    path, notes = export(tmp_path, settings, model, dtype)
    assert notes == []
    kinds = {info.kind.name for info in read_gguf(path).tensors.values()}
    assert kinds == {"f32", DTYPES[dtype]}
    x = ids(1, 24)
    with torch.no_grad():
        logits = open_gguf(path).build()(x)
        away = (logits - model(x)).abs().mean()
    assert 0 < away <= most
    row = x[0].tolist()
    answer = ask(path, N_VOCAB, ids=row)
    assert abs(loss(answer.logs_NV, row) - loss(logits[0], row)) <= 2 * NEAR + 0.02 * most


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "post-norm": ({"placement": "post"}, "placement = 'post'"),
    "alibi": ({"position": "alibi"}, "position.name = 'alibi'"),
    "part of a head turned": ({"position": {"name": "rope", "share": 0.5}}, r"position.share = 0.5"),
    "dynamic scaling": (
        {"position": {"name": "rope", "scaling": {"name": "dynamic-ntk", "factor": 2.0, "original_context": 20}}},
        "position.scaling = 'dynamic-ntk'",
    ),
    "one rotation for some layers and one for others": (
        {"position": [{"name": "rope"}, {"name": "rope", "base": 500.0}]},
        "position.base = 500.0",
    ),
    "scaling of Llama 3 where llama.cpp does not look for it": (
        {
            "attention": {"name": "gqa", "qk_norm": True},
            "position": {"name": "rope", "scaling": {"name": "llama3", "factor": 8.0, "original_context": 16}},
        },
        "qk_norm|position.scaling",
    ),
    "sinks": ({"attention": {"name": "gqa", "sinks": True}}, "sinks"),
    "another activation": ({"feed_forward": "relu2"}, "feed_forward.name = 'relu2'"),
    "a cap on logits": ({"logit_cap": 20.0}, "logit_cap = 20.0"),
    "scaled embeddings": ({"embedding_scale": 2.0}, "embedding_scale = 2.0"),
    "scaled experts": ({"feed_forward": {"name": "moe", "n_experts": 4, "scale": 2.0}}, "feed_forward.scale = 2.0"),
    "another scale of scores": ({"attention": {"name": "gqa", "scale": 0.5}}, "attention.scale = 0.5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_architecture_holds_is_named(case: str, tmp_path: Path) -> None:
    settings, model = small(**REFUSED[case][0])
    with pytest.raises(SettingError, match=REFUSED[case][1]):
        export(tmp_path, settings, model)
    assert list(tmp_path.iterdir()) == []


def test_a_window_that_llama_cpp_does_not_have_is_said(tmp_path: Path) -> None:
    settings, model = small(attention={"name": "gqa", "window": 9})
    path, notes = export(tmp_path, settings, model)
    assert "up to 9 tokens" in notes[0]
    assert open_gguf(path).settings.pattern("attention")[0].settings["window"] == 9


def changed(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert content.count(old) == 1, old
    path.write_bytes(content.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (("llama.context_length", 40), ("llama.context_lengtH", 40), "llama.context_length = None"),
        (("general.type", "model"), ("general.typo", "model"), None),
        (("llama.block_count", 2), ("llama.block_count", 3), "blk.2"),
        (("llama.block_count", 2), ("llama.block_count", 2**31), "whole number|no more than"),
        (("llama.embedding_length", 32), ("llama.embedding_length", 2**23), "token_embd|settings"),
        (("llama.attention.head_count", 4), ("llama.attention.head_count", 3), "settings|divisor|multiple"),
        (("llama.vocab_size", N_VOCAB), ("llama.logit_scal", N_VOCAB), "not known here.*logit_scal"),
        (("general.architecture", "llama"), ("general.architecture", "lambs"), "expected one of"),
        (("tokenizer.ggml.pre", "gpt-2"), ("tokenizer.ggml.pre", "gpt-9"), "expected a split pattern of .*qwen2"),
    ],
)
def test_what_is_not_understood_is_refused(
    old: tuple[str, Any], new: tuple[str, Any], why: str | None, tmp_path: Path
) -> None:
    path, _ = export(tmp_path, *small())
    changed(path, write_entry(*old), write_entry(*new))
    if why is None:
        open_gguf(path)
        return
    with pytest.raises(FormatError, match=why):
        open_gguf(path)


@pytest.mark.parametrize(("scale", "whole"), [(0.0, True), (1.0, True), (2.0, False)])
def test_a_scale_of_experts_that_llama_cpp_does_not_take(scale: float, whole: bool, tmp_path: Path) -> None:
    """It reads the key for other architectures only, so that a file of this one with another scale means something else
    there than it says."""
    path, _ = export(tmp_path, *small(feed_forward={"name": "moe", "n_experts": 4, "n_active": 2}))
    changed(path, write_entry("llama.rope.dimension_count", 8), write_entry("llama.expert_weights_scale", scale))
    if whole:
        open_gguf(path)
    else:
        with pytest.raises(FormatError, match=r"llama\.expert_weights_scale = 2\.0: expected 1\.0 or none"):
            open_gguf(path)


def test_scaling_of_llama_3_that_is_not_its_own_is_refused(tmp_path: Path) -> None:
    scaling = {"name": "llama3", "factor": 8.0, "original_context": 16}
    settings, model = small(position={"name": "rope", "base": 500.0, "scaling": scaling})
    path, _ = export(tmp_path, settings, model)
    assert open_gguf(path).settings.pattern("position")[0].settings["scaling"].settings["original_context"] == 16
    info = read_gguf(path).tensors["rope_freqs.weight"]
    content = bytearray(path.read_bytes())
    content[info.start : info.start + 4] = torch.tensor([3.3]).numpy().tobytes()
    path.write_bytes(content)
    with pytest.raises(FormatError, match="not Llama 3's"):
        open_gguf(path)


def test_a_byte_tokenizer_without_an_end_is_said(tmp_path: Path) -> None:
    settings, model = small()
    bare = ByteTokenizer(specials=[])
    notes = export_gguf(settings, N_VOCAB, model.state_dict(), bare, tmp_path / "m.gguf")
    assert any("no end token" in note for note in notes)
