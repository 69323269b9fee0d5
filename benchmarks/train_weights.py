"""Tessera's weights in the names of its peers, so that all of them begin alike."""

from collections.abc import Mapping

import torch
from torch import Tensor

QKV = ("attention.query", "attention.key", "attention.value")

GPT2 = {
    "embedding": "transformer.wte",
    "positions.0": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
    "attention.output": "transformer.h.{}.attn.c_proj",
    "feed_forward.input": "transformer.h.{}.mlp.c_fc",
    "feed_forward.output": "transformer.h.{}.mlp.c_proj",
    "attention_norm": "transformer.h.{}.ln_1",
    "feed_forward_norm": "transformer.h.{}.ln_2",
}
LLAMA = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "attention.query": "model.layers.{}.self_attn.q_proj",
    "attention.key": "model.layers.{}.self_attn.k_proj",
    "attention.value": "model.layers.{}.self_attn.v_proj",
    "attention.output": "model.layers.{}.self_attn.o_proj",
    "feed_forward.gate": "model.layers.{}.mlp.gate_proj",
    "feed_forward.input": "model.layers.{}.mlp.up_proj",
    "feed_forward.output": "model.layers.{}.mlp.down_proj",
    "attention_norm": "model.layers.{}.input_layernorm",
    "feed_forward_norm": "model.layers.{}.post_attention_layernorm",
}
LITGPT = {
    "embedding": "transformer.wte",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
    "attention.output": "transformer.h.{}.attn.proj",
    "feed_forward.output": "transformer.h.{}.mlp.proj",
    "attention_norm": "transformer.h.{}.norm_1",
    "feed_forward_norm": "transformer.h.{}.norm_2",
}
LITGPT_GPT2 = {"feed_forward.input": "transformer.h.{}.mlp.fc"}
LITGPT_LLAMA = {"feed_forward.gate": "transformer.h.{}.mlp.fc_1", "feed_forward.input": "transformer.h.{}.mlp.fc_2"}
SCRATCH = {
    "embedding": "tok_emb",
    "positions.0": "pos_emb",
    "final_norm": "final_norm",
    "head": "out_head",
    "attention_norm": "trf_blocks.{}.norm1",
    "feed_forward_norm": "trf_blocks.{}.norm2",
}
SCRATCH_GPT2 = {
    "attention.output": "trf_blocks.{}.att.proj",
    "feed_forward.input": "trf_blocks.{}.ff.layers.0",
    "feed_forward.output": "trf_blocks.{}.ff.layers.2",
}
SCRATCH_LLAMA = {
    "attention.query": "trf_blocks.{}.att.W_query",
    "attention.key": "trf_blocks.{}.att.W_key",
    "attention.value": "trf_blocks.{}.att.W_value",
    "attention.output": "trf_blocks.{}.att.out_proj",
    "feed_forward.gate": "trf_blocks.{}.ff.fc1",
    "feed_forward.input": "trf_blocks.{}.ff.fc2",
    "feed_forward.output": "trf_blocks.{}.ff.fc3",
}


def in_names(own: Mapping[str, Tensor], names: Mapping[str, str], *, joined: str = "") -> dict[str, Tensor]:
    """`own` as another project calls it, {} standing for the layer; `joined` is queries, keys and values in one."""
    found, together = {}, {}
    for name, tensor in own.items():
        part, _, kind = name.rpartition(".")
        layer = ""
        if part.startswith("blocks."):
            _, layer, part = part.split(".", 2)
        if part in names:
            found[f"{names[part].format(layer)}.{kind}"] = tensor
        elif part in QKV:
            together.setdefault(f"{joined.format(layer)}.{kind}", {})[part] = tensor
        else:
            raise KeyError(f"no name for {name}")
    found |= {name: torch.cat([parts[part] for part in QKV]) for name, parts in together.items()}
    if "head.weight" not in own:  # tied
        found[f"{names['head']}.weight"] = own["embedding.weight"]
    return found


def gpt2_weights(own: Mapping[str, Tensor], *, transposed: bool) -> dict[str, Tensor]:
    """In GPT-2's names; `transposed` as its published weights are."""
    found = in_names(own, GPT2, joined="transformer.h.{}.attn.c_attn")
    if not transposed:
        return found
    maps = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    return {name: one.T if name.endswith(maps) else one for name, one in found.items()}
