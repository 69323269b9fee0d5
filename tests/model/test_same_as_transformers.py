"""A whole GPT-2 and a whole Llama of transformers, with the same weights, give the same logits."""

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tessera.model.decoder import Decoder


def shake(model: nn.Module) -> None:
    """Random values in every parameter, also in those that start at 0 or 1 and would hide a mistake."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)


def from_gpt2(theirs: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """GPT-2 keeps its matrices (d_in, d_out), and query, key and value in one."""
    ours = {"embedding.weight": theirs["transformer.wte.weight"], "position.weight": theirs["transformer.wpe.weight"]}
    names = {"ln_1": "attention_norm", "attn.c_proj": "attention.output", "ln_2": "feed_forward_norm"}
    names |= {"mlp.c_fc": "feed_forward.input", "mlp.c_proj": "feed_forward.output"}
    for kind in ("weight", "bias"):
        ours[f"final_norm.{kind}"] = theirs[f"transformer.ln_f.{kind}"]
        for i in range(n_layers):
            parts = theirs[f"transformer.h.{i}.attn.c_attn.{kind}"].chunk(3, dim=-1)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                ours[f"blocks.{i}.attention.{name}.{kind}"] = part.T if part.ndim == 2 else part
            for name, own in names.items():
                value = theirs[f"transformer.h.{i}.{name}.{kind}"]
                ours[f"blocks.{i}.{own}.{kind}"] = value.T if value.ndim == 2 else value
    return ours


def from_llama(theirs: dict[str, Tensor], tied: bool) -> dict[str, Tensor]:
    names = {
        "model.embed_tokens": "embedding",
        "model.norm": "final_norm",
        "lm_head": "head",
        "model.layers": "blocks",
        "self_attn.q_proj": "attention.query",
        "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value",
        "self_attn.o_proj": "attention.output",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "feed_forward_norm",
        "mlp.gate_proj": "feed_forward.gate",
        "mlp.up_proj": "feed_forward.input",
        "mlp.down_proj": "feed_forward.output",
    }
    ours = {}
    for name, value in theirs.items():
        for old, new in names.items():
            name = name.replace(old, new)
        ours[name] = value
    if tied:
        ours.pop("head.weight", None)
    return ours


def test_gpt2() -> None:
    config = GPT2Config(vocab_size=31, n_positions=24, n_embd=32, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0)
    theirs = GPT2LMHeadModel(config).eval()
    shake(theirs)
    ours = Decoder(
        n_vocab=31,
        context=24,
        d_model=32,
        n_layers=3,
        n_heads=4,
        position="learned",
        norm="layer",
        feed_forward="gelu",
        tied=True,
        bias=True,
    ).eval()
    ours.load_state_dict(from_gpt2(theirs.state_dict(), 3))
    assert ours.n_params == sum(parameter.numel() for parameter in theirs.parameters())
    same_logits(ours, theirs)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_llama(n_kv_heads: int, tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=n_kv_heads,
        max_position_embeddings=24,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs = LlamaForCausalLM(config).eval()
    shake(theirs)
    ours = Decoder(
        n_vocab=31,
        context=24,
        d_model=32,
        d_ff=48,
        n_layers=3,
        n_heads=4,
        attention={"name": "gqa", "n_kv_heads": n_kv_heads},
        position={"name": "rope", "base": 5000.0},
        norm={"name": "rms", "eps": 1e-6},
        feed_forward="swiglu",
        tied=tied,
    ).eval()
    ours.load_state_dict(from_llama(theirs.state_dict(), tied))
    assert ours.n_params == sum(parameter.numel() for parameter in theirs.parameters())
    same_logits(ours, theirs)


def same_logits(ours: Decoder, theirs: nn.Module) -> None:
    ids = torch.randint(31, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert expected.std() > 0.3, "logits of nearly nothing would agree by themselves"
        assert (ours(ids) - expected).abs().max() <= 1e-4
        cache = ours.new_cache(3)
        cached = [ours(part, cache) for part in ids.split([17, 1, 6], dim=1)]
        assert (torch.cat(cached, dim=1) - expected).abs().max() <= 1e-4
