"""Adapters in files: what is refused and how it is named, patterns of modules, and models of no family."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tessera.adapt import Lora, adapted, merge_and_remove
from tessera.adapt.peft_config import PeftConfig, target_modules
from tessera.adapt.peft_form import CONFIG, TENSORS, load_adapter, save_adapter
from tessera.config import check
from tessera.errors import FormatError, InputError, SettingError
from tessera.model.decoder import Decoder
from tessera.model.settings import DecoderSettings

SHAPE: dict[str, Any] = {"context": 16, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24}
IDS = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(0))
QUERY = "base_model.model.model.layers.0.self_attn.q_proj."


def model(seed: int = 0, **settings: Any) -> tuple[Decoder, DecoderSettings]:
    torch.manual_seed(seed)
    shape = check(DecoderSettings, SHAPE | settings)
    return Decoder.from_settings(shape, n_vocab=40).eval(), shape


def saved(folder: Path, **settings: Any) -> tuple[Path, DecoderSettings, Tensor]:
    """A folder with an adapter, the model's settings, and what the model says with it."""
    made, shape = model()
    Lora(rank=2, targets=("attention",), **settings)(made)
    for param in made.parameters():
        if param.requires_grad and param.ndim == 2:
            nn.init.normal_(param, std=0.2)
    path = folder / "adapter"
    save_adapter(made, path, settings=shape, base="somewhere")
    return path, shape, made(IDS).detach()


def rewrite(path: Path, config: dict[str, Any] | None = None, tensors: dict[str, Tensor | None] | None = None) -> None:
    """Change what the files say; None takes a tensor away."""
    content = json.loads((path / CONFIG).read_text()) | (config or {})
    (path / CONFIG).write_text(json.dumps(content))
    found = load_file(path / TENSORS) | (tensors or {})
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, path / TENSORS)


def test_the_config_is_pefts(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path, rslora=True, dora=True, dropout=0.1)
    content = json.loads((path / CONFIG).read_text())
    wanted = {"peft_type": "LORA", "r": 2, "lora_alpha": 16, "lora_dropout": 0.1, "use_rslora": True, "use_dora": True}
    wanted |= {"target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"], "base_model_name_or_path": "somewhere"}
    assert wanted.items() <= content.items()
    assert {f"{QUERY}lora_A.weight", f"{QUERY}lora_B.weight", f"{QUERY}lora_magnitude_vector"} <= set(
        load_file(path / TENSORS)
    )


def test_an_adapter_comes_back_on_its_base_and_on_a_quantized_one(tmp_path: Path) -> None:
    path, shape, expected = saved(tmp_path)
    made, _ = model()
    assert load_adapter(made, path, settings=shape) == []
    assert torch.allclose(made(IDS), expected, atol=1e-6)
    assert not any(param.requires_grad for param in made.parameters())
    other, _ = model()
    Lora(base="int8")(other, "unused")
    (line,) = load_adapter(other, path, settings=shape, name="used", trainable=True)
    assert "a base with other numbers" in line
    assert (other(IDS) - expected).abs().max() < 0.05
    assert all(".used." in name for name, param in other.named_parameters() if param.requires_grad)
    merge_and_remove(other)


def test_a_model_of_no_family_has_its_own_names(tmp_path: Path) -> None:
    made, shape = model(position="alibi")
    Lora(rank=2)(made)
    for param in made.parameters():
        if param.requires_grad:
            nn.init.normal_(param, std=0.2)
    lines = save_adapter(made, tmp_path / "adapter", settings=shape)
    assert "names are Tessera's own" in lines[-1]
    again, _ = model(position="alibi")
    load_adapter(again, tmp_path / "adapter", settings=shape)
    assert torch.equal(again(IDS), made(IDS))


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "peft_type = 'IA3': expected LORA"),
    ({"bias": "all"}, "bias = 'all'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
    ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
    ({"r": 3}, "do not fit together, or not to the rank 3"),
    ({"r": True}, "r = True"),
    ({"lora_alpha": 0}, "lora_alpha = 0"),
    ({"lora_dropout": 1}, "lora_dropout = 1"),
    ({"use_dora": True}, "lora_magnitude_vector were expected"),
    ({"use_rslora": 1}, "use_rslora = 1"),
    ({"alpha_pattern": {"(a+)+": 3}}, "is no pattern"),
    ({"rank_pattern": {"*": 3}}, "is no pattern"),
    ({"rank_pattern": {"q_proj": -3}}, "numbers above 0"),
]


@pytest.mark.parametrize(("config", "what"), CONFIGS)
def test_a_config_that_is_not_done_is_named(config: dict[str, Any], what: str, tmp_path: Path) -> None:
    path, shape, _ = saved(tmp_path)
    rewrite(path, config)
    made, _ = model()
    with pytest.raises(FormatError) as caught:
        load_adapter(made, path, settings=shape)
    assert what in str(caught.value)
    assert str(path) in str(caught.value)
    assert not adapted(made), "an error changes nothing"


FILES: list[tuple[dict[str, Tensor | None], str]] = [
    ({f"{QUERY}lora_B.weight": None}, "has lora_A, where"),
    ({f"{QUERY}lora_B.weight": torch.zeros(16, 3)}, "do not fit together"),
    ({f"{QUERY}lora_B.weight": torch.zeros(17, 2)}, "is [16, 16] in this model, and the adapter is for [17, 16]"),
    ({f"{QUERY}lora_A.weight": torch.zeros(2, 15)}, "and the adapter is for [16, 15]"),
    ({f"{QUERY}lora_A.weight": torch.full((2, 16), torch.nan)}, "NaN or infinite"),
    ({f"{QUERY}lora_A.weight": torch.zeros(2, 16, dtype=torch.int32)}, "of the type I32"),
    ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(2, 16)}, "is no part of a LoRA adapter"),
    (
        {
            "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(2, 16),
            "base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight": torch.zeros(16, 2),
        },
        "'model.layers.9.self_attn.q_proj' is not a linear map of this model",
    ),
]


@pytest.mark.parametrize(("tensors", "what"), FILES)
def test_a_file_that_does_not_fit_is_named(tensors: dict[str, Tensor | None], what: str, tmp_path: Path) -> None:
    path, shape, _ = saved(tmp_path)
    rewrite(path, tensors=tensors)
    made, _ = model()
    with pytest.raises(FormatError) as caught:
        load_adapter(made, path, settings=shape)
    assert what in str(caught.value)
    assert not adapted(made)


def test_files_that_are_missing_or_cut_off(tmp_path: Path) -> None:
    path, shape, _ = saved(tmp_path)
    made, _ = model()
    with pytest.raises(InputError, match="nowhere"):
        load_adapter(made, tmp_path / "nowhere", settings=shape)
    data = (path / TENSORS).read_bytes()
    (path / TENSORS).write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="adapter_model"):
        load_adapter(made, path, settings=shape)


def test_an_unknown_key_is_told_and_half_precision_is_read(tmp_path: Path) -> None:
    path, shape, expected = saved(tmp_path)
    halves = {name: tensor.bfloat16() for name, tensor in load_file(path / TENSORS).items()}
    rewrite(path, {"something_new": 3, "also_new": None}, halves)
    made, _ = model()
    assert load_adapter(made, path, settings=shape) == [
        "adapter_config.json: 'something_new' is not known and left out"
    ]
    assert (made(IDS) - expected).abs().max() < 0.02


def test_what_is_saved_is_whole_or_not_there(tmp_path: Path) -> None:
    made, shape = model()
    Lora(rank=2)(made)
    with pytest.raises(SettingError, match="has no 'other'"):
        save_adapter(made, tmp_path / "a", settings=shape, name="other")
    with torch.no_grad():
        next(param for param in made.parameters() if param.requires_grad)[0, 0] = torch.inf
    with pytest.raises(InputError, match="NaN or infinite"):
        save_adapter(made, tmp_path / "a", settings=shape)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/file").write_text("")
    made, shape = model()
    Lora(rank=2)(made)
    with pytest.raises(InputError, match="not empty"):
        save_adapter(made, tmp_path / "b", settings=shape)
    assert not (tmp_path / "a").exists()


def test_patterns_of_modules_are_pefts() -> None:
    """The first that matches the end of the whole name, from a dot on: as `get_pattern_key` of peft."""
    config = PeftConfig(8, 8.0, 0.0, False, False, ranks={"q_proj": 2, r"layers\.1\..*up_proj": 3, "model.x": 4})
    names = {"model.layers.0.q_proj": 2, "q_proj": 2, "aq_proj": 8, "m.layers.1.mlp.up_proj": 3, "model.x": 4}
    assert {name: config.rank_of(name) for name in [*names, "model.x.y"]} == names | {"model.x.y": 8}


def test_short_names_only_where_all_of_them_are_meant() -> None:
    modules = ["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.0.q", "h.1.q", "head"]
    assert target_modules(["h.0.attn.c_proj", "h.0.q", "h.1.q"], modules) == ["h.0.attn.c_proj", "q"]
    assert target_modules(["h.0.q"], modules) == ["h.0.q"]
