"""The peers of `benchmarks.train`, each as it ships: its own code makes the model, and ours only loads weights into it.

`twin` says which model of Tessera's computes the same as a peer's, as they do not agree on biases, positions and the
kind of GELU; from the same weights the two have the same losses. Nothing of Tessera is imported here (`train_shapes`).
"""

import contextlib
import importlib
import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import nanogpt
from benchmarks.nanogpt import NotHereError
from benchmarks.train_shapes import BETAS, CLIP, DECAY, LR, Rows, Shape, TrainStep
from benchmarks.train_weights import (
    LITGPT,
    LITGPT_GPT2,
    LITGPT_LLAMA,
    LLAMA,
    SCRATCH,
    SCRATCH_GPT2,
    SCRATCH_LLAMA,
    gpt2_weights,
    in_names,
)

LossOf = Callable[[Rows], Tensor]


@dataclass(frozen=True)
class Way:
    """How a peer computes: as it ships, or with autocast, with its fp32 products through oneDNN, or compiled."""

    dtype: torch.dtype = torch.float32
    onednn: bool = False
    compiled: bool = False

    @contextmanager
    def products(self) -> Iterator[None]:
        matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        before = matmul.fp32_precision
        matmul.fp32_precision = "bf16" if self.onednn else before
        try:
            yield
        finally:
            matmul.fp32_precision = before


AS_SHIPPED = Way()


class Peer(ABC):
    """`folder` is where it lies, if it is not installed."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def twin(self, shape: Shape) -> Shape:
        """The nearest to `shape` that it can be; a `NotHereError` where nothing is near."""
        return shape

    @abstractmethod
    def model(self, shape: Shape) -> nn.Module:
        """Its model of the shape `twin` says."""

    @abstractmethod
    def weights(self, shape: Shape, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tessera's weights in its names."""

    @abstractmethod
    def loss_of(self, model: Callable[..., Any]) -> LossOf:
        """The mean loss of a batch, as its own training takes it."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """PyTorch's fused AdamW; matrices decay."""
        matrices = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim < 2]
        settings = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(settings, lr=LR, betas=BETAS, fused=True)

    def step(self, shape: Shape, own: Mapping[str, Tensor] | None = None, way: Way = AS_SHIPPED) -> TrainStep:
        """What a loop in plain PyTorch does, from the weights `own` (of `twin`), or from its own random ones."""
        shape = self.twin(shape)
        with contextlib.redirect_stdout(io.StringIO()):
            model = self.model(shape).train()
        if own is not None:
            load(model, self.weights(shape, own))
        return plain_step(
            model, self.optimizer(model), self.loss_of(torch.compile(model) if way.compiled else model), way
        )


def load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Every learned number has to come from `weights`, and every weight has to find its place."""
    found = model.load_state_dict({name: one.clone() for name, one in weights.items()}, strict=False)
    learned = {name for name, _ in model.named_parameters()}
    assert not found.unexpected_keys, found.unexpected_keys
    assert not learned & set(found.missing_keys), learned & set(found.missing_keys)


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: LossOf, way: Way) -> TrainStep:
    autocast = torch.autocast("cpu", dtype=way.dtype, enabled=way.dtype != torch.float32)

    def step(rows: Rows) -> float:
        with way.products():
            with autocast:
                loss = loss_of(rows)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


class NanoGpt(Peer):
    """Karpathy's nanoGPT, from a folder with its model.py; its own optimizer."""

    def twin(self, shape: Shape) -> Shape:
        if shape.kind != "gpt2":
            raise NotHereError("it has GPT-2's block alone")
        return shape

    def model(self, shape: Shape) -> nn.Module:
        return nanogpt.gpt(
            self.folder,
            context=shape.context,
            n_vocab=shape.n_vocab,
            n_layers=shape.n_layers,
            n_heads=shape.n_heads,
            d_model=shape.d_model,
        )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return nanogpt.optimizer(model, decay=DECAY, lr=LR, betas=BETAS)

    def weights(self, shape: Shape, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return gpt2_weights(own, transposed=False)

    def loss_of(self, model: Callable[..., Any]) -> LossOf:
        return lambda rows: model(rows.inputs_BT, rows.targets_BT)[1]


class Transformers(Peer):
    """Hugging Face's GPT-2 or Llama, with the optimizer that its Trainer takes."""

    def twin(self, shape: Shape) -> Shape:
        return replace(shape, bias=True, norm_bias=True) if shape.kind == "gpt2" else shape

    def model(self, shape: Shape) -> nn.Module:
        package = _package("transformers", self.folder)
        if shape.kind == "gpt2":
            return package.GPT2LMHeadModel(
                package.GPT2Config(
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
            )
        return package.LlamaForCausalLM(
            package.LlamaConfig(
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
        )

    def weights(self, shape: Shape, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return gpt2_weights(own, transposed=True) if shape.kind == "gpt2" else in_names(own, LLAMA)

    def loss_of(self, model: Callable[..., Any]) -> LossOf:
        def loss(rows: Rows) -> Tensor:
            targets = rows.targets_BT
            return model(input_ids=rows.inputs_BT, labels=targets, shift_labels=targets, use_cache=False).loss

        return loss


class LitGpt(Peer):
    """Lightning's litgpt. It has no learned positions: GPT-2's block has rotary ones, and a head that is not tied."""

    def twin(self, shape: Shape) -> Shape:
        if shape.kind != "gpt2":
            return shape
        return replace(shape, norm_bias=True, position="rope", tied=False)

    def model(self, shape: Shape) -> nn.Module:
        package, config = _package("litgpt.model", self.folder), _package("litgpt.config", self.folder)
        gpt2 = {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "gelu_approximate": shape.approximate}
        llama = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP"}
        return package.GPT(
            config.Config(
                block_size=shape.context,
                vocab_size=shape.n_vocab,
                padded_vocab_size=shape.n_vocab,
                n_layer=shape.n_layers,
                n_head=shape.n_heads,
                n_embd=shape.d_model,
                intermediate_size=shape.d_ff,
                rotary_percentage=1.0,
                parallel_residual=False,
                bias=False,
                norm_eps=1e-5,
                **(gpt2 if shape.kind == "gpt2" else llama),
            )
        )

    def weights(self, shape: Shape, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = LITGPT | (LITGPT_GPT2 if shape.kind == "gpt2" else LITGPT_LLAMA)
        return in_names(own, names, joined="transformer.h.{}.attn.qkv")

    def loss_of(self, model: Callable[..., Any]) -> LossOf:
        loss = _package("litgpt.utils", self.folder).chunked_cross_entropy
        return lambda rows: loss(model(rows.inputs_BT), rows.targets_BT)


class LlmsFromScratch(Peer):
    """Raschka's LLMs-from-scratch: the faster of its two variants of each model."""

    def twin(self, shape: Shape) -> Shape:
        if shape.kind != "gpt2":
            return shape
        return replace(shape, bias=True, norm_bias=True, tied=False, approximate="tanh")

    def model(self, shape: Shape) -> nn.Module:
        config = {
            "vocab_size": shape.n_vocab,
            "context_length": shape.context,
            "emb_dim": shape.d_model,
            "n_heads": shape.n_heads,
            "n_layers": shape.n_layers,
        }
        if shape.kind == "gpt2":
            more = {"drop_rate": 0.0, "qkv_bias": True}
            return _package("llms_from_scratch.ch04", self.folder).GPTModelFast(config | more)
        more = {"hidden_dim": shape.d_ff, "n_kv_groups": shape.n_heads, "rope_base": 10_000.0, "rope_freq": None}
        package = _package("llms_from_scratch.llama3", self.folder)
        return package.Llama3ModelFast(config | more | {"dtype": torch.float32})

    def weights(self, shape: Shape, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if shape.kind == "gpt2":
            return in_names(own, SCRATCH | SCRATCH_GPT2, joined="trf_blocks.{}.att.qkv")
        return in_names(own, SCRATCH | SCRATCH_LLAMA)

    def loss_of(self, model: Callable[..., Any]) -> LossOf:
        return lambda rows: F.cross_entropy(model(rows.inputs_BT).flatten(0, 1), rows.targets_BT.flatten())


def _package(name: str, folder: Path | None) -> Any:
    """An installed package, or one that lies in `folder`."""
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotHereError(f"it cannot be imported ({error}): install it, or give its folder by --peers") from None


def peers(*, nanogpt: Path | None = None, folder: Path | None = None) -> dict[str, Peer]:
    """All that may take part, by name; what is not there says so when its model is made."""
    return {
        "nanogpt": NanoGpt(nanogpt),
        "transformers": Transformers(folder),
        "litgpt": LitGpt(folder),
        "llms_from_scratch": LlmsFromScratch(folder),
    }
