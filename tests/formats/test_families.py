"""Each family: a random model of transformers, read, gives its logits; written again, transformers gives the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.formats.foreign_models import FAMILIES, ids, load, make, tokenizer

from tessera.formats import open_model
from tessera.formats.families.filled import fill, shortest_pattern
from tessera.formats.huggingface_out import export_huggingface

SAME = 1e-4


@pytest.mark.parametrize("case", FAMILIES)
def test_the_same_logits_in_and_out(case: str, tmp_path: Path) -> None:
    theirs = make(case)
    theirs.save_pretrained(tmp_path / "in")
    source = open_model(tmp_path / "in")
    ours = source.build()
    assert ours.n_params == theirs.num_parameters()
    x = ids()
    with torch.no_grad():
        expected = theirs(x).logits
        assert expected.std() > 0.5, "logits of nearly nothing would agree by themselves"
        assert (ours(x) - expected).abs().max() <= SAME
        cache = ours.new_cache(len(x))
        cached = [ours(part, cache) for part in x.split([17, 1, 22], dim=1)]
        assert (torch.cat(cached, dim=1) - expected).abs().max() <= SAME

        written = tmp_path / "out"
        export_huggingface(source.settings, source.n_vocab, ours.state_dict(), tokenizer(), written, dtype="fp32")
        again = load(written)
        assert (again(x).logits - expected).abs().max() <= SAME
    reopened = open_model(written)
    shapes = {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}
    first, second = (fill(each.settings, each.n_vocab, shapes) for each in (source, reopened))
    assert first.differences(second) == {}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("gpt2", torch.float16),
        ("qwen3", torch.bfloat16),
        ("gemma2", torch.bfloat16),
        ("gemma2", torch.float16),
        ("mixtral", torch.bfloat16),
        ("deepseek", torch.bfloat16),
    ],
)
def test_files_of_half_precision(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The numbers of the file, whatever the type in which they are built."""
    make(case).to(dtype).save_pretrained(tmp_path)
    source = open_model(tmp_path)
    x = ids()
    with torch.no_grad():
        expected = load(tmp_path, torch.float32)(x).logits
        assert (source.build()(x) - expected).abs().max() <= SAME
        half = source.build(dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}


@pytest.mark.parametrize("case", ["llama", "qwen2", "gemma2", "gemma3", "deepseek-latent"])
def test_the_words_of_older_files(case: str, tmp_path: Path) -> None:
    """rope_theta and rope_scaling beside each other, torch_dtype, no list of layer types."""
    theirs = make(case)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    whole = dict(rope.get("full_attention", rope))
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    config["rope_theta"] = whole.pop("rope_theta")
    kind = whole.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **whole}
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    path.write_text(json.dumps(config))
    x = ids()
    with torch.no_grad():
        assert (open_model(tmp_path).build()(x) - theirs(x).logits).abs().max() <= SAME


def test_gpt2_as_it_was_published(tmp_path: Path) -> None:
    """Without the prefix of its names, and with its masks among the tensors."""
    theirs = make("gpt2")
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 40, 40).tril() for i in range(3)}
    save_file(tensors, path, {"format": "pt"})
    x = ids()
    with torch.no_grad():
        assert (open_model(tmp_path).build()(x) - theirs(x).logits).abs().max() <= SAME


def test_a_window_matters() -> None:
    """The texts of these tests are longer than the windows, or the windows would not be tested."""
    windowed: list[tuple[str, dict[str, Any]]] = [
        ("mistral", {"sliding_window": None}),
        ("qwen2-window", {"use_sliding_window": False}),
        ("qwen3-window", {"layer_types": ["full_attention"] * 4}),
        ("gemma2", {"layer_types": ["full_attention"] * 3}),
        ("mixtral-window", {"sliding_window": None}),
    ]
    for case, without in windowed:
        x = ids()
        with torch.no_grad():
            one, other = (model(x).logits for model in (make(case), make(case, **without)))
        assert (one - other).abs().max() > 0.1, case


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("a", "a"),
        ("aaaa", "a"),
        ("abab", ["a", "b"]),
        ("aba", ["a", "b"]),
        ("aabaaba", ["a", "a", "b"]),
        ("abb", [*"abb"]),
    ],
)
def test_the_shortest_pattern(layers: str, expected: Any) -> None:
    assert shortest_pattern(layers) == expected
