"""Folders as Hugging Face's libraries have them: what is refused, what is written, and that nothing is half-written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.formats.foreign_models import ids, load, make, tokenizer

from tessera.config import check
from tessera.errors import FormatError, InputError, SettingError
from tessera.formats import export_model, huggingface_out, open_model
from tessera.formats.families import FAMILIES
from tessera.model.decoder import Decoder
from tessera.model.settings import DecoderSettings
from tessera.tokenizers import Tokenizer, export_tokenizer
from tessera.tokenizers.char import CharTokenizer
from tessera.tokenizers.framing import Framing

SMALL = {"context": 40, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder a family, as transformers writes it."""
    cases = {"gpt2": "gpt2", "llama": "llama", "mistral": "mistral", "qwen2": "qwen2-window", "qwen3": "qwen3"}
    cases |= {"gemma2": "gemma2", "gemma3_text": "gemma3", "mixtral": "mixtral", "deepseek_v2": "deepseek-latent"}
    assert cases.keys() == FAMILIES.keys()
    root = tmp_path_factory.mktemp("families")
    for family, case in cases.items():
        make(case).save_pretrained(root / family)
    return {family: root / family for family in cases}


@pytest.fixture
def llama(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a Llama's folder, to be spoiled."""
    return Path(shutil.copytree(folders["llama"], tmp_path / "llama"))


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ("llama", {"model_type": "bert"}, "model_type = 'bert'"),
    ("llama", {"model_type": None}, "model_type = None"),
    ("llama", {"model_type": "gemma3", "text_config": {}}, "only the text part"),
    ("llama", {"attention_bias": "yes"}, "attention_bias = 'yes'"),
    ("llama", {"attention_bias": True}, "q_proj.bias' is missing"),
    ("llama", {"sliding_window": 7}, "sliding_window = 7"),
    ("llama", {"tie_word_embeddings": True}, "'lm_head.weight' is not 'model.embed_tokens.weight'"),
    ("llama", {"head_dim": 7}, "an even number"),
    ("llama", {"head_dim": 16}, "the settings say"),
    ("llama", {"num_attention_heads": 5, "head_dim": None}, "hidden_size = 32"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads = 3"),
    ("llama", {"hidden_size": 0}, "hidden_size = 0"),
    ("llama", {"hidden_size": None}, "hidden_size = None"),
    ("llama", {"hidden_size": 2**80}, "hidden_size = "),
    ("llama", {"num_hidden_layers": 10**12}, "num_hidden_layers = 1000000000000"),
    ("llama", {"num_hidden_layers": 5000}, "num_hidden_layers = 5000 and 30 tensors"),
    ("llama", {"num_hidden_layers": 2}, "belongs to nothing"),
    ("llama", {"num_hidden_layers": 4}, "is missing"),
    ("llama", {"vocab_size": 2**24}, "the settings say"),
    ("llama", {"max_position_embeddings": 2**24}, "MiB of tables"),
    ("llama", {"rms_norm_eps": 0}, "rms_norm_eps = 0"),
    ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps = 'small'"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config = "),
    ("llama", {"rope_scaling": {"type": "longrope"}}, "rope_scaling.rope_type = 'longrope'"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor = None"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": -2}}, "rope_scaling.factor = -2"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2, "more": 1}}, "rope_scaling.more = 1"),
    ("llama", {"rope_scaling": 8}, "rope_scaling = 8"),
    ("llama", rope("default", partial_rotary_factor=0.5), "partial_rotary_factor = 0.5"),
    ("llama", rope("yarn", factor=0.5), "factor"),
    ("llama", rope("yarn", factor=2, truncate=3), "truncate = 3"),
    ("llama", rope("llama3", factor=2, low_freq_factor=4, high_freq_factor=1), "low_factor"),
    ("llama", rope("default", rope_theta=True), "rope_theta = True"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved = True"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types = "),
    ("qwen2", {"layer_types": ["chunked"] * 4}, "layer_types = "),
    ("qwen2", {"layer_types": ["full_attention"] * 3}, "one entry for each of 4 layers"),
    ("qwen2", {"layer_types": None, "max_window_layers": -1}, "max_window_layers = -1"),
    ("qwen2", {"use_sliding_window": False}, "no sliding layers without a sliding_window"),
    ("qwen3", {"head_dim": None}, "the settings say"),
    ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar = -1"),
    ("gemma2", {"final_logit_softcapping": "30"}, "final_logit_softcapping = '30'"),
    ("gemma2", {"hidden_activation": "relu"}, "hidden_activation = 'relu'"),
    ("gemma2", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": 3}}, "sliding_attention = 3"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = False"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
    ("gpt2", {"activation_function": "silu"}, "activation_function = 'silu'"),
    ("gpt2", {"n_positions": 41}, "is [40, 32], and the settings say [41, 32]"),
    ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok = 6"),
    ("mixtral", {"num_local_experts": 4096}, "12288 experts and"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method = 'noaux_tc'"),
    ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob = True"),
    ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func = 'sigmoid'"),
    ("deepseek_v2", {"moe_layer_freq": 2}, "moe_layer_freq = 2"),
    ("deepseek_v2", {"first_k_dense_replace": 2}, "is missing"),
    ("deepseek_v2", {"num_key_value_heads": 2}, "num_key_value_heads = 2"),
    ("deepseek_v2", {"q_lora_rank": None}, "is missing"),
    ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 3}, "n_group = 3"),
]


@pytest.mark.parametrize(("family", "values", "why"), REFUSED)
def test_what_is_not_done_is_refused(
    family: str, values: dict[str, Any], why: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Whatever would change the numbers and is not done here is an error that names the key and the value."""
    folder = Path(shutil.copytree(folders[family], tmp_path / family))
    change(folder, **values)
    with pytest.raises(FormatError) as error:
        open_model(folder).build()
    assert why in str(error.value)


def test_unknown_keys_are_told(llama: Path) -> None:
    change(llama, is_special=True, nothing=None, torch_dtype="float32")
    assert [note for note in open_model(llama).notes if "config.json" in note] == [
        "config.json: 'is_special' is not known to the family 'llama' and left out"
    ]


def test_missing_and_superfluous_tensors(llama: Path) -> None:
    path = llama / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"model.more": torch.zeros(1)}, path)
    with pytest.raises(FormatError, match=r"'model\.more' belongs to nothing"):
        open_model(llama)
    save_file(tensors | {"model.norm.weight": torch.ones(31)}, path)
    with pytest.raises(FormatError, match=r"'model\.norm\.weight' is \[31\], and the settings say \[32\]"):
        open_model(llama)
    save_file(tensors | {"model.norm.weight": torch.ones(32, dtype=torch.int32)}, path)
    with pytest.raises(FormatError, match=r"'model\.norm\.weight' is of the type I32"):
        open_model(llama)


def test_a_tied_head_may_be_written_twice(llama: Path) -> None:
    path = llama / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path)
    change(llama, tie_word_embeddings=True)
    model = open_model(llama).build()
    with torch.no_grad():
        assert (model(ids()) - load(llama)(ids()).logits).abs().max() <= 1e-4


def test_a_folder_without_tensors_or_with_pickles(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"has neither model\.safetensors nor"):
        open_model(llama)
    (llama / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FormatError, match=r"pytorch_model\.bin: a pickle, .* convert the model to safetensors"):
        open_model(llama)


def test_shards_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = make("qwen3")
    theirs.save_pretrained(tmp_path / "in", max_shard_size="50KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 2
    source = open_model(tmp_path / "in")
    monkeypatch.setattr(huggingface_out, "MAX_SHARD", 40_000)
    export_model(source.settings, source.n_vocab, source.build().state_dict(), tokenizer(), tmp_path / "out", to="hf")
    written = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(written) > 2 and written[0] == f"model-00001-of-{len(written):05d}.safetensors"
    with torch.no_grad():
        expected = theirs(ids()).logits
        assert (load(tmp_path / "out")(ids()).logits - expected).abs().max() <= 1e-4
        assert (open_model(tmp_path / "out").build()(ids()) - expected).abs().max() <= 1e-4


def new(n_vocab: int = 267, **settings: Any) -> tuple[DecoderSettings, Decoder]:
    checked = check(DecoderSettings, SMALL | settings)
    torch.manual_seed(0)
    model = Decoder.from_settings(checked, n_vocab=n_vocab).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return checked, model


def export(
    settings: DecoderSettings, model: Decoder, path: Path, made: Tokenizer | None = None, **more: Any
) -> list[str]:
    return export_model(settings, model.n_vocab, model.state_dict(), made or tokenizer(), path, to="hf", **more)


QK_NORM = {"name": "gqa", "qk_norm": True}
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "as the demo": ("qwen3", {"attention": QK_NORM, "tied": False}),
    "padded": ("llama", {"vocab_multiple": 64, "tied": True}),
    "padded, untied": ("llama", {"vocab_multiple": 64}),
    "with a future": ("llama", {"n_future": 1}),
    "with a window": ("mistral", {"attention": {"name": "gqa", "window": 9}}),
    "with two windows": ("qwen3", {"attention": [QK_NORM | {"window": 9}, QK_NORM]}),
    "as nanoGPT": ("gpt2", {"position": "learned", "norm": "layer", "feed_forward": "gelu", "tied": True}),
    "relu": ("gpt2", {"position": "learned", "norm": {"name": "layer", "bias": True}, "feed_forward": "relu2"}),
    "experts": ("mixtral", {"feed_forward": {"name": "moe", "n_experts": 4, "n_active": 2}}),
}


@pytest.mark.parametrize("case", OURS)
def test_our_own_models_find_their_family(case: str, tmp_path: Path) -> None:
    family, settings = OURS[case]
    checked, model = new(**settings)
    lines = export(checked, model, tmp_path / "out")
    assert f"family {family!r}" in lines[0]
    theirs = load(tmp_path / "out")
    with torch.no_grad():
        expected = model(ids())
        assert expected.shape[-1] == model.n_vocab
        assert (theirs(ids()).logits - expected).abs().max() <= 1e-4
        assert (open_model(tmp_path / "out").build()(ids()) - expected).abs().max() <= 1e-4


def test_lines_say_what_was_added_and_left_out(tmp_path: Path) -> None:
    checked, model = new(position="learned", norm="layer", feed_forward="gelu", tied=True, n_future=1)
    lines = export(checked, model, tmp_path / "out")
    assert "biases that the model does not have are written as zeros" in lines[1]
    assert "only training uses are left out, such as future.0." in lines[2]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"position": "alibi"}, r"none of them has position\.name; the nearest is llama.*position\.name = 'alibi'"),
        ({"placement": "parallel"}, r"none of them has placement"),
        ({"attention": {"name": "gqa", "sinks": True}}, r"attention\.sinks = True \(but False\)"),
        ({"norm": "none"}, r"norm\.name = 'none'"),
        ({"logit_cap": 3.0}, r"logit_cap = 3\.0 \(but None\)"),
        ({"position": {"name": "rope", "share": 0.5}}, r"position\.share = 0\.5"),
        ({"position": [{"name": "rope"}, "none"]}, r"position\.name = 'none'"),
        ({"feed_forward": {"name": "moe", "balance": "bias"}}, r"feed_forward\.balance = 'bias'"),
        ({"embedding_scale": 2.0, "feed_forward": "geglu", "placement": "sandwich"}, r"embedding_scale = 2\.0"),
    ],
)
def test_what_no_family_holds_is_named(settings: dict[str, Any], why: str, tmp_path: Path) -> None:
    checked, model = new(**settings)
    with pytest.raises(SettingError, match=why):
        export(checked, model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_types(tmp_path: Path) -> None:
    checked, model = new(n_layers=1)
    export(checked, model, tmp_path / "bf16", dtype="bf16")
    for name, tensor in load_file(tmp_path / "bf16" / "model.safetensors").items():
        assert tensor.dtype == torch.bfloat16, name
    weight = model.blocks[0].attention.query.weight  # type: ignore[union-attr]
    read = load_file(tmp_path / "bf16" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(read, weight.detach().bfloat16())
    assert load(tmp_path / "bf16").dtype == torch.bfloat16
    with torch.no_grad():
        weight[0, 0] = 1e5
    with pytest.raises(SettingError, match=r"dtype = 'fp16'.*q_proj\.weight' holds numbers that are too large"):
        export(checked, model, tmp_path / "fp16", dtype="fp16")
    with pytest.raises(SettingError, match=r"dtype = 'int3': expected one of fp32, bf16, fp16"):
        export(checked, model, tmp_path / "int3", dtype="int3")
    assert [path.name for path in tmp_path.iterdir()] == ["bf16"], "what fails leaves nothing behind"


def test_a_full_folder_is_not_written_to(tmp_path: Path) -> None:
    checked, model = new(n_layers=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        export(checked, model, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    export(checked, model, tmp_path / "empty")
    export(checked, model, tmp_path / "a" / "b" / "new")
    assert open_model(tmp_path / "a" / "b" / "new").settings == open_model(tmp_path / "empty").settings


def test_a_tokenizer_that_has_no_such_form(tmp_path: Path) -> None:
    checked, model = new(n_layers=1)
    with pytest.raises(SettingError, match="tokenizer = 'char': expected bpe, byte, unigram, bpe-pieces"):
        export(checked, model, tmp_path / "out", CharTokenizer.train(["abc"]))
    assert list(tmp_path.iterdir()) == []


def test_the_tokens_around_a_text(tmp_path: Path) -> None:
    """Begin and ends, and the chat template: transformers does as the framing says, and they come back."""
    checked, model = new(n_layers=1)
    made = tokenizer().with_specials(["<|done|>"])
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}<|done|>{% endfor %}"
    made = made.with_framing(Framing(begin="<|begin|>", ends=("<|done|>",), template=template))
    folder = tmp_path / "out"
    export(checked, model, folder, made)
    begin, done, end = (made.specials[name] for name in ("<|begin|>", "<|done|>", "<|endoftext|>"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs("hi").input_ids == [begin, *b"hi"]
    chat = theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|begin|>hi<|done|>"
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert (generation.bos_token_id, generation.eos_token_id) == (begin, [done, end])
    source = open_model(folder)
    assert source.tokenizer is not None
    assert source.tokenizer.framing.begin == "<|begin|>"
    assert source.tokenizer.framing.template == template
    assert source.tokenizer.end_ids == {done, end}
    assert source.tokenizer.encode("hi") == [*b"hi"]


@pytest.mark.parametrize("to", ["hf", "safetensors"])
def test_tensors_of_another_model(to: str, tmp_path: Path) -> None:
    checked, model = new(n_layers=1)
    tensors = dict(model.state_dict())
    norm = tensors.pop("final_norm.weight")
    for wrong, why in ((tensors, "'final_norm.weight' is missing"), (tensors | {"final_norm.weight": norm[1:]}, "31")):
        with pytest.raises(InputError, match=why):
            export_model(checked, model.n_vocab, wrong, tokenizer(), tmp_path / "out.safetensors", to=to)
    assert list(tmp_path.iterdir()) == []


def test_qwen2_and_a_foreign_tokenizer(tmp_path: Path) -> None:
    checked, model = new(attention={"name": "gqa", "bias": True, "output_bias": False})
    assert "AutoTokenizer of transformers 5" in export(checked, model, tmp_path / "out")[-1]


def test_a_tokenizer_larger_than_the_model(llama: Path, tmp_path: Path) -> None:
    few, model = new(n_vocab=257)
    with pytest.raises(InputError, match="the tokenizer has 258 ids and the model 257 rows"):
        export(few, model, tmp_path / "few")
    checked, model = new(n_vocab=258)
    export(checked, model, tmp_path / "out")
    larger = tokenizer().with_specials(["<|more|>"])
    export_tokenizer(larger, tmp_path / "out", format="huggingface")
    with pytest.raises(FormatError, match="vocab_size = 258, and the tokenizer has 259 ids"):
        open_model(tmp_path / "out")
    shutil.copy(tmp_path / "out" / "tokenizer.json", llama)
    assert open_model(llama).n_vocab == 267, "a vocabulary with rows to spare is usual"
    (llama / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(FormatError, match="its tokenizer cannot be read"):
        open_model(llama)
