"""LoRA, rsLoRA and DoRA beside peft: values and gradients of a map, and whole adapters in both directions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.formats.foreign_models import ids, load, make, tokenizer
from torch import Tensor, nn

from tessera.adapt import Lora, adapted, base_sha256, disabled, merge_and_remove
from tessera.adapt.low_rank import Decomposed, LowRank
from tessera.adapt.peft_form import load_adapter, save_adapter
from tessera.formats import ModelSource, open_model
from tessera.formats.huggingface_out import export_huggingface
from tessera.model.decoder import Decoder
from tessera.model.linear import Linear

peft = pytest.importorskip("peft", reason="peft is not installed")

SAME = 1e-5
KINDS: dict[str, dict[str, bool]] = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}


def theirs_like(base: Linear, adapter: LowRank, *, rslora: bool = False, dora: bool = False) -> nn.Module:
    """peft's map with the same numbers."""
    inner = nn.Sequential(nn.Linear(base.weight.shape[1], base.weight.shape[0], bias=base.bias is not None))
    inner[0].load_state_dict(base.state_dict())
    settings = {"r": adapter.rank, "lora_alpha": adapter.alpha, "target_modules": ["0"]}
    made = peft.get_peft_model(inner, peft.LoraConfig(**settings, use_rslora=rslora, use_dora=dora))
    with torch.no_grad():
        for name, param in made.named_parameters():
            for part, own in (("lora_A", adapter.down), ("lora_B", adapter.up)):
                if part in name:
                    param.copy_(own)
            if "magnitude" in name:
                assert isinstance(adapter, Decomposed)
                assert torch.allclose(param, adapter.magnitude, atol=1e-6), "it starts at the rows' lengths"
                param.mul_(1.3)
    return made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_map_has_pefts_values_and_gradients(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    base = Linear(d_in=24, d_out=40, bias=bias)
    for param in base.parameters():
        nn.init.normal_(param)
    model = nn.ModuleDict({"query": base})
    settings = KINDS[kind]
    Lora(rank=6, alpha=9.0, targets=("query",), **settings)(model)
    (layer,) = adapted(model).values()
    adapter = layer.current
    assert adapter is not None
    nn.init.normal_(adapter.up, std=0.3)
    other = theirs_like(base, adapter, **settings)
    with torch.no_grad():
        if isinstance(adapter, Decomposed):
            adapter.magnitude.mul_(1.3)

    x = torch.randn(3, 5, 24)
    mine_x, their_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine, expected = layer(mine_x), other(their_x)
    assert (mine - base(x)).abs().max() > 0.5, "an adapter that does nothing would agree by itself"
    assert (mine - expected).abs().max() <= SAME
    torch.manual_seed(1)
    toward = torch.randn_like(mine)
    (mine * toward).sum().backward()
    (expected * toward).sum().backward()
    close(mine_x.grad, their_x.grad)
    gradients = {name: param.grad for name, param in other.named_parameters() if param.grad is not None}
    close(adapter.down.grad, next(grad for name, grad in gradients.items() if "lora_A" in name))
    close(adapter.up.grad, next(grad for name, grad in gradients.items() if "lora_B" in name))
    if isinstance(adapter, Decomposed):
        close(adapter.magnitude.grad, next(grad for name, grad in gradients.items() if "magnitude" in name))
    assert base.weight.grad is None


def close(one: Tensor | None, other: Tensor | None) -> None:
    assert one is not None
    assert other is not None
    assert (one - other).abs().max() <= SAME * max(1.0, float(other.abs().max()))


def shake_adapter(model: nn.Module) -> None:
    """Numbers that matter, in every adapter of the model, ours or theirs."""
    torch.manual_seed(3)
    for name, param in model.named_parameters():
        if any(part in name for part in (".adapters.", "lora_A", "lora_B")) and param.ndim == 2:
            nn.init.normal_(param, std=0.2)
        elif any(part in name for part in (".magnitude", "magnitude_vector")):
            with torch.no_grad():
                param.mul_(1 + 0.2 * torch.rand_like(param))


def opened(case: str, folder: Path) -> tuple[ModelSource, Decoder]:
    make(case).save_pretrained(folder)
    source = open_model(folder)
    return source, source.build()


CASES: list[tuple[str, str, tuple[str, ...] | None]] = [
    ("llama", "lora", None),
    ("llama-biases", "dora", None),
    ("qwen3", "rslora", ("attention.query", "attention.value")),
    ("gemma2", "lora", None),
    ("llama-head", "lora", ("blocks.1.attention", "head")),
    ("gpt2", "lora", None),
    ("gpt2", "rslora", ("attention.query", "attention.value", "feed_forward.output")),
    ("gpt2", "dora", ("attention.key", "attention.output")),
    ("deepseek", "lora", ("attention",)),
    ("deepseek", "dora", ("attention.key_up", "attention.latent")),
    ("mixtral", "rslora", None),
]


@pytest.mark.parametrize(("case", "kind", "targets"), CASES)
def test_ours_loads_in_peft_and_gives_the_same_logits(
    case: str, kind: str, targets: tuple[str, ...] | None, tmp_path: Path
) -> None:
    source, model = opened(case, tmp_path / "in")
    Lora(rank=3, alpha=5.0, targets=targets, **KINDS[kind])(model)
    with disabled(model):
        plain = model(ids())
    shake_adapter(model)
    with torch.no_grad():
        expected = model(ids())
    export = open_model(tmp_path / "in").build()
    export_huggingface(source.settings, source.n_vocab, export.state_dict(), tokenizer(), tmp_path / "hf", dtype="fp32")
    save_adapter(model, tmp_path / "adapter", settings=source.settings, base=str(tmp_path / "hf"))
    theirs = peft.PeftModel.from_pretrained(load(tmp_path / "hf"), tmp_path / "adapter").eval()
    with torch.no_grad():
        found = theirs(ids()).logits
    assert (expected - plain).abs().max() > 0.1
    assert (found - expected).abs().max() <= 1e-4
    assert (found - expected).abs().mean() <= SAME

    again = source.build()
    notes = load_adapter(again, tmp_path / "adapter", settings=source.settings, name="again")
    assert notes == []
    with torch.no_grad():
        assert (again(ids()) - expected).abs().max() <= 1e-4
    merge_and_remove(again)
    with torch.no_grad():
        assert (again(ids()) - expected).abs().max() <= 1e-4


THEIRS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    ("qwen2", {"target_modules": "all-linear", "use_rslora": True}),
    ("gemma3", {"target_modules": ["o_proj", "down_proj"], "use_dora": True}),
    ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
    ("deepseek", {"target_modules": ["kv_b_proj", "kv_a_proj_with_mqa"], "use_dora": True}),
    (
        "mistral",
        {
            "target_modules": r".*\.layers\.[01]\..*(k_proj|up_proj)",
            "rank_pattern": {"k_proj": 2, r"layers\.1\.mlp\.up_proj": 5},
            "alpha_pattern": {"up_proj": 3},
        },
    ),
]


@pytest.mark.parametrize(("case", "settings"), THEIRS)
def test_theirs_loads_here_and_gives_the_same_logits(case: str, settings: dict[str, Any], tmp_path: Path) -> None:
    source, model = opened(case, tmp_path / "in")
    base = load(tmp_path / "in")
    config = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **settings)
    theirs = peft.get_peft_model(base, config).eval()
    shake_adapter(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    sha256 = base_sha256(model)
    notes = load_adapter(model, tmp_path / "adapter", settings=source.settings)
    assert notes == []
    assert base_sha256(model) == sha256
    with torch.no_grad():
        expected = theirs(ids()).logits
        assert (model(ids()) - expected).abs().max() <= 1e-4
        with disabled(model), theirs.disable_adapter():
            assert (model(ids()) - theirs(ids()).logits).abs().max() <= 1e-4

    save_adapter(model, tmp_path / "back", settings=source.settings)
    returned = peft.PeftModel.from_pretrained(load(tmp_path / "in"), tmp_path / "back").eval()
    mine, other = peft.get_peft_model_state_dict(returned), peft.get_peft_model_state_dict(theirs)
    assert set(mine) == set(other)
    for name in mine:
        assert torch.equal(mine[name], other[name]), name


def test_peft_takes_other_maps_for_experts_and_it_is_said(tmp_path: Path) -> None:
    source, model = opened("deepseek", tmp_path / "in")
    Lora(rank=3, targets=("blocks.0.feed_forward",))(model)
    lines = save_adapter(model, tmp_path / "adapter", settings=source.settings)
    assert "down_proj, gate_proj, up_proj for those of the experts" in lines[-1]
    again = source.build()
    assert load_adapter(again, tmp_path / "adapter", settings=source.settings) == []
