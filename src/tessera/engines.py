"""Who computes the tokens: the kernels of the CPU engine where they have the model and pay, else PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tessera.errors import InputError, SettingError, TesseraError
from tessera.formats import ModelSource
from tessera.generate.draft_model import DraftModel
from tessera.generate.graph_step import GraphStep
from tessera.generate.requests import Backend
from tessera.generate.speculative import Guesser, PromptLookup
from tessera.generate.torch_step import TorchStep
from tessera.model.attention import GroupedQueryAttention
from tessera.model.decoder import Decoder
from tessera.models import build_for_use, open_any
from tessera.tokenizers import Tokenizer

ENGINES = ("auto", "cpu", "torch")
FLOATS = ("fp32", "bf16", "fp16")
"""What PyTorch computes with."""
STORAGES = ("q8_0", "q4_0", "q4_1", "bf16", "fp32")
"""What the kernels have weights in."""
CACHES = ("float", "int8")
"""What keys and values are kept in; as floats in half precision by the kernels, unless the weights are fp32."""
SMALL = 20_000_000
"""Weights below which `auto` takes PyTorch: its steps are quick enough then not to wait for a compiler."""
BLOCK = 16
"""Positions of a block of the cache."""
SEQUENCES = 8
"""The cache has room for so many sequences of the whole context, if that is no more than ..."""
CACHE_BYTES = 2**32
"""... so much memory. What no token has come to is not taken."""
Say = Callable[[str], None]


def cpu_backend(
    source: ModelSource, *, engine: str = "auto", dtype: str | None = None, cache: str = "float", say: Say
) -> Backend | None:
    """The CPU engine with the model of `source`, or None where PyTorch is to compute.

    `auto` says why it is not the CPU engine, unless the model is small; "cpu" makes that an `InputError`. `dtype` is
    what the weights are kept in, as in the file unless said; `cache` is "int8" or "float" for keys and values.
    """
    if engine not in ENGINES:
        raise SettingError("engine", engine, ", ".join(ENGINES))
    if dtype is not None and dtype not in FLOATS + STORAGES:
        raise SettingError("dtype", dtype, ", ".join(dict.fromkeys(FLOATS + STORAGES)))
    if cache not in CACHES:
        raise SettingError("cache", cache, ", ".join(CACHES))
    only_kernels = dtype is not None and dtype not in FLOATS
    if engine == "torch" and only_kernels:
        raise SettingError("dtype", dtype, f"one of {', '.join(FLOATS)}, as PyTorch is to compute")
    if engine == "cpu" and dtype == "fp16":
        raise SettingError("dtype", dtype, f"one of {', '.join(STORAGES)} for the CPU engine")
    if engine == "torch" or dtype == "fp16":
        return None
    with torch.device("meta"):
        model = Decoder.from_settings(source.settings, n_vocab=source.n_vocab)
    if engine == "auto" and not only_kernels and model.n_params < SMALL:
        return None
    try:
        return _cpu_model(source, model, dtype, cache, say)
    except TesseraError as error:
        if engine == "cpu" or only_kernels:
            raise
        say(f"{error}; PyTorch computes instead")
        return None


def _cpu_model(source: ModelSource, model: Decoder, dtype: str | None, cache: str, say: Say) -> Backend:
    from tessera.generate.cpu.model import CpuModel  # with it comes the compiler

    n_vocab = None if source.tokenizer is None else source.tokenizer.n_vocab
    kept = None if cache == "float" else cache
    return CpuModel.from_source(source, dtype, n_blocks=_n_blocks(model), n_vocab=n_vocab, cache=kept, say=say)


def _n_blocks(model: Decoder) -> int:
    """Of the cache: for `SEQUENCES` of the whole context, or for what fits, and for one at the least."""
    n_blocks = -(-model.context // BLOCK)
    attention = model.blocks[0].attention if len(model.blocks) else None
    if isinstance(attention, GroupedQueryAttention):
        block_bytes = 4 * BLOCK * len(model.blocks) * attention.n_kv_heads * attention.d_head
        n_blocks = max(n_blocks, min(SEQUENCES * n_blocks, CACHE_BYTES // block_bytes))
    return n_blocks


def graph_backend(source: ModelSource, model: Decoder, *, cache: str, say: Say) -> Backend:
    """Steps of a model on a GPU as graphs, where its pieces allow that; it says why where they do not."""
    n_vocab = None if source.tokenizer is None else source.tokenizer.n_vocab
    backend = GraphStep(model, n_blocks=_n_blocks(model), block_size=BLOCK, n_vocab=n_vocab, cache=cache)
    if backend.why_not is not None:
        say(f"without graphs: {backend.why_not}")
    return backend


def guesser_of(
    tokenizer: Tokenizer, *, lookup: bool, draft: str | Path | None, engine: str, say: Say
) -> Guesser[Any] | None:
    """What guesses tokens ahead: the text itself, a smaller model with the same tokenizer, or nothing."""
    if lookup and draft is not None:
        raise SettingError("lookup", lookup, "false where a draft model guesses")
    if lookup:
        return PromptLookup()
    if draft is None:
        return None
    source = open_any(draft)
    if source.tokenizer is None or source.tokenizer.vocabulary() != tokenizer.vocabulary():
        raise InputError(f"{draft}: a model that guesses needs the tokenizer of the one that answers")
    backend = cpu_backend(source, engine=engine, say=say)
    if backend is None:
        model = build_for_use(source)
        backend = TorchStep(model, n_blocks=_n_blocks(model), block_size=BLOCK, n_vocab=tokenizer.n_vocab)
    return DraftModel(backend)
