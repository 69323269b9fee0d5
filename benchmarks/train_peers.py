"""The models that train side by side in `benchmarks.train`: Tessera's, and those of others as they ship.

All of a shape begin from the same weights, so that their losses say whether they do the same work.
"""

import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tessera.data.batches import Batch
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.train.precision import FP32, Precision
from tessera.train.step import Step

CPU = torch.device("cpu")
LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0


@dataclass(frozen=True)
class Shape:
    """GPT-2's kind of block ("gpt2") or Llama's ("llama")."""

    kind: str
    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    context: int
    batch_size: int
    n_vocab: int
    bias: bool = False

    @property
    def pieces(self) -> dict[str, Any]:
        gpt2 = {
            "position": "learned",
            "norm": {"name": "layer", "bias": self.bias},
            "feed_forward": {"name": "gelu", "approximate": "none"},
            "tied": True,
            "bias": self.bias,
        }
        return gpt2 if self.kind == "gpt2" else {"norm": {"name": "rms", "eps": 1e-5}}

    def decoder(self) -> Decoder:
        torch.manual_seed(0)
        return Decoder(
            n_vocab=self.n_vocab,
            context=self.context,
            d_model=self.d_model,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            d_ff=self.d_ff,
            **self.pieces,
        )

    def batch(self, number: int) -> Batch:
        """Random tokens, the same for everybody."""
        random = torch.Generator().manual_seed(number)
        ids_BS = torch.randint(self.n_vocab, (self.batch_size, self.context + 1), generator=random)
        return Batch(ids_BS[:, :-1].contiguous(), ids_BS[:, 1:].contiguous())


SHAPES = {
    "S": Shape("gpt2", 6, 384, 6, 1536, 256, 16, 65),
    "M": Shape("llama", 8, 512, 8, 1376, 256, 8, 8192),
    "quick S": Shape("gpt2", 2, 64, 2, 256, 64, 4, 65),
    "quick M": Shape("llama", 2, 64, 2, 160, 64, 4, 256),
}

TrainStep = Callable[[Batch], float]
"""Makes an update and returns the loss before it."""


class NotHereError(Exception):
    """A peer that cannot take part, and why."""


def tessera(shape: Shape, precision: Precision = FP32) -> TrainStep:
    """The step of the training loop, with all that it measures and guards."""
    objective = NextToken(model=shape.decoder(), data=_Nothing())
    optimizer = OPTIMIZERS["adamw"](groups(objective, DECAY), lr=LR, betas=BETAS)
    step = Step(objective.train(), optimizer, CLIP, CPU)
    step.precision = precision
    return lambda batch: step.take([batch], step=1, rate=1.0, detail=False).loss


class _Nothing:
    """No data: the batches are given."""

    def __next__(self) -> Any:
        raise StopIteration

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass


def nanogpt(shape: Shape, folder: Path | None, precision: Precision = FP32, *, compiled: bool = False) -> TrainStep:
    """Karpathy's nanoGPT, from a folder with its model.py; its own optimizer."""
    if shape.kind != "gpt2":
        raise NotHereError("it has GPT-2's block alone")
    if folder is None:
        raise NotHereError("no folder is given (--nanogpt)")
    module = _module(folder / "model.py", "nanogpt_model")
    config = module.GPTConfig(
        block_size=shape.context,
        vocab_size=shape.n_vocab,
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        n_embd=shape.d_model,
        dropout=0.0,
        bias=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(config).train()
        optimizer = model.configure_optimizers(DECAY, LR, BETAS, "cpu")
    model.load_state_dict(gpt2_weights(shape.decoder(), transposed=False), strict=False)
    forward = torch.compile(model) if compiled else model
    return _step(model, optimizer, lambda batch: forward(batch.inputs_BT, batch.targets_BT)[1], precision)


def transformers(shape: Shape, precision: Precision = FP32) -> TrainStep:
    """Hugging Face's model of the same shape, with the optimizer that its Trainer takes."""
    if importlib.util.find_spec("transformers") is None:
        raise NotHereError("it is not installed")
    model = transformers_model(shape).train()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=LR,
        betas=BETAS,
        fused=True,
    )

    def loss(batch: Batch) -> Tensor:
        return model(
            input_ids=batch.inputs_BT, labels=batch.targets_BT, shift_labels=batch.targets_BT, use_cache=False
        ).loss

    return _step(model, optimizer, loss, precision)


def transformers_model(shape: Shape) -> nn.Module:
    """GPT-2 or Llama with the weights of `shape.decoder()`."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    model: nn.Module
    if shape.kind == "gpt2":
        config = GPT2Config(
            vocab_size=shape.n_vocab,
            n_positions=shape.context,
            n_embd=shape.d_model,
            n_layer=shape.n_layers,
            n_head=shape.n_heads,
            n_inner=shape.d_ff,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        model, weights = GPT2LMHeadModel(config), gpt2_weights(shape.decoder(), transposed=True)
    else:
        config = LlamaConfig(
            vocab_size=shape.n_vocab,
            hidden_size=shape.d_model,
            intermediate_size=shape.d_ff,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            max_position_embeddings=shape.context,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
        model, weights = LlamaForCausalLM(config), llama_weights(shape.decoder())
    found = model.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys, found.unexpected_keys
    return model


def gpt2_weights(model: Decoder, *, transposed: bool) -> dict[str, Tensor]:
    """In GPT-2's names; `transposed` as its published weights are. Biases stay as they are made: zeros."""
    own = model.state_dict()
    weights = {
        "transformer.wte.weight": own["embedding.weight"],
        "lm_head.weight": own["embedding.weight"],
        "transformer.wpe.weight": own["positions.0.weight"],
        "transformer.ln_f.weight": own["final_norm.weight"],
    }
    for i in range(len(model.blocks)):
        ours, theirs = f"blocks.{i}.", f"transformer.h.{i}."
        qkv = torch.cat([own[f"{ours}attention.{part}.weight"] for part in ("query", "key", "value")])
        maps = {
            "attn.c_attn": qkv,
            "attn.c_proj": own[ours + "attention.output.weight"],
            "mlp.c_fc": own[ours + "feed_forward.input.weight"],
            "mlp.c_proj": own[ours + "feed_forward.output.weight"],
        }
        weights |= {f"{theirs}{name}.weight": one.T if transposed else one for name, one in maps.items()}
        weights[f"{theirs}ln_1.weight"] = own[ours + "attention_norm.weight"]
        weights[f"{theirs}ln_2.weight"] = own[ours + "feed_forward_norm.weight"]
    return {name: one.clone() for name, one in weights.items()}


LLAMA = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.input",
    "mlp.down_proj": "feed_forward.output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
}


def llama_weights(model: Decoder) -> dict[str, Tensor]:
    """In Llama's names."""
    own = model.state_dict()
    weights = {
        "model.embed_tokens.weight": own["embedding.weight"],
        "model.norm.weight": own["final_norm.weight"],
        "lm_head.weight": own["head.weight"],
    }
    for i in range(len(model.blocks)):
        for theirs, ours in LLAMA.items():
            weights[f"model.layers.{i}.{theirs}.weight"] = own[f"blocks.{i}.{ours}.weight"]
    return {name: one.clone() for name, one in weights.items()}


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[Batch], Tensor], precision: Precision
) -> TrainStep:
    """What a loop in plain PyTorch does."""

    def step(batch: Batch) -> float:
        with precision.step():
            with precision.forward(CPU):
                loss = loss_of(batch)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def _module(path: Path, name: str) -> Any:
    if not path.is_file():
        raise NotHereError(f"there is no {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
