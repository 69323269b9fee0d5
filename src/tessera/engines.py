"""Who computes the tokens: the kernels of the CPU engine where they have the model and pay, else PyTorch or NumPy.

Each is imported when it is to compute: a start is quick that loads one of them.
"""

import ctypes
import sys
from collections.abc import Callable
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.errors import InputError, SettingError, TesseraError
from tessera.formats import ModelSource
from tessera.formats.source import skeleton_shapes
from tessera.generate.draft_model import DraftModel
from tessera.generate.requests import Backend
from tessera.generate.speculative import Guesser, PromptLookup
from tessera.model.settings import DecoderSettings
from tessera.models import build_for_use, open_any
from tessera.tokenizers import Tokenizer

if TYPE_CHECKING:
    from tessera.model.decoder import Decoder
    from tessera.scratch.decoder import Decoder as NumpyDecoder

ENGINES = ("auto", "cpu", "torch", "numpy")
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
DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
"""What PyTorch loads to use a GPU of NVIDIA's."""
AMD = Path("/dev/kfd")
Say = Callable[[str], None]


def installed(package: str) -> bool:
    """Whether a package that Tessera can do without is there."""
    return find_spec(package) is not None


def check_engine(engine: str, dtype: str | None, cache: str) -> None:
    """Raise a `SettingError` for what no engine, or not this one, can do."""
    if engine not in ENGINES:
        raise SettingError("engine", engine, ", ".join(ENGINES))
    if dtype is not None and dtype not in FLOATS + STORAGES:
        raise SettingError("dtype", dtype, ", ".join(dict.fromkeys(FLOATS + STORAGES)))
    if cache not in CACHES:
        raise SettingError("cache", cache, ", ".join(CACHES))
    if engine == "torch" and dtype is not None and dtype not in FLOATS:
        raise SettingError("dtype", dtype, f"one of {', '.join(FLOATS)}, as PyTorch is to compute")
    if engine == "cpu" and dtype == "fp16":
        raise SettingError("dtype", dtype, f"one of {', '.join(STORAGES)} for the CPU engine")
    if engine == "numpy" and dtype not in (None, "fp32"):
        raise SettingError("dtype", dtype, "fp32, as NumPy is to compute")
    if engine == "numpy" and cache != "float":
        raise SettingError("cache", cache, "float, as NumPy is to compute")


def pick_device(name: str, engine: str) -> str:
    """Where to compute: `auto` is a GPU if there is one and the engine can use it. Without a driver for one there is
    none, which is known without PyTorch."""
    if name == "cpu" or (name == "auto" and (engine in ("cpu", "numpy") or not _gpu_may_be_there())):
        return "cpu"
    if not installed("torch"):
        raise SettingError("device", name, "cpu, as PyTorch is not installed")
    from tessera.building import pick_device as with_torch

    return str(with_torch(name, "device"))


def _gpu_may_be_there() -> bool:
    if not installed("torch"):
        return False
    try:
        ctypes.CDLL(DRIVERS.get(sys.platform))
    except OSError:
        return AMD.exists()
    return sys.platform in DRIVERS


def cpu_backend(
    source: ModelSource, *, engine: str = "auto", dtype: str | None = None, cache: str = "float", say: Say
) -> Backend | None:
    """The CPU engine with the model of `source`, or None where another is to compute.

    `auto` says why it is not the CPU engine, unless the model is small; "cpu" makes that an `InputError`. `dtype` is
    what the weights are kept in, as in the file unless said; `cache` is "int8" or "float" for keys and values.
    """
    check_engine(engine, dtype, cache)
    only_kernels = dtype is not None and dtype not in FLOATS
    if engine in ("torch", "numpy") or dtype == "fp16":
        return None
    if engine == "auto" and not only_kernels and installed("torch") and n_weights(source) < SMALL:
        return None
    try:
        return _cpu_model(source, dtype, cache, say)
    except TesseraError as error:
        if engine == "cpu" or only_kernels:
            raise
        say(f"{error}; PyTorch computes instead" if installed("torch") else str(error))
        return None


def n_weights(source: ModelSource) -> int:
    """How many numbers a model has learned."""
    return sum(map(prod, skeleton_shapes(source.path, source.settings, source.n_vocab).values()))


def _cpu_model(source: ModelSource, dtype: str | None, cache: str, say: Say) -> Backend:
    if not installed("numba"):
        raise InputError("the CPU engine needs numba, which is not installed")
    from tessera.generate.cpu.model import CpuModel  # with it comes the compiler

    n_vocab = None if source.tokenizer is None else source.tokenizer.n_vocab
    kept = None if cache == "float" else cache
    return CpuModel.from_source(
        source, dtype, n_blocks=_n_blocks(source.settings), n_vocab=n_vocab, cache=kept, say=say
    )


def _n_blocks(settings: DecoderSettings) -> int:
    """Of the cache: for `SEQUENCES` of the whole context, or for what fits, and for one at the least."""
    n_blocks = -(-settings.context // BLOCK)
    attention = settings.pattern("attention")[0]
    if attention.name == "gqa":
        d_head = settings.d_head or settings.d_model // settings.n_heads
        n_kv_heads = attention.settings.get("n_kv_heads") or settings.n_heads
        block_bytes = 4 * BLOCK * settings.n_layers * n_kv_heads * d_head
        n_blocks = max(n_blocks, min(SEQUENCES * n_blocks, CACHE_BYTES // block_bytes))
    return n_blocks


def graph_backend(source: ModelSource, model: "Decoder", *, cache: str, say: Say) -> Backend:
    """Steps of a model on a GPU as graphs, where its pieces allow that; it says why where they do not."""
    from tessera.generate.graph_step import GraphStep

    n_vocab = None if source.tokenizer is None else source.tokenizer.n_vocab
    n_blocks = _n_blocks(source.settings)
    backend = GraphStep(model, n_blocks=n_blocks, block_size=BLOCK, n_vocab=n_vocab, cache=cache)
    if backend.why_not is not None:
        say(f"without graphs: {backend.why_not}")
    return backend


def numpy_decoder(source: ModelSource) -> "NumpyDecoder":
    """The model of `source` in NumPy; a `SettingError` names a piece that NumPy has not."""
    from tessera.scratch.decoder import Decoder as NumpyDecoder

    # Its own initialisation may be one that NumPy has not, and is not needed.
    model = NumpyDecoder.from_settings(source.settings, n_vocab=source.n_vocab, init="normal")
    model.load({name: source.array(name) for name in source.names})
    return model


def guesser_of(
    tokenizer: Tokenizer, *, lookup: bool, draft: str | Path | None, engine: str, device: str, say: Say
) -> Guesser[Any] | None:
    """What guesses tokens ahead: the text itself, a smaller model with the same tokenizer, or nothing.

    The model computes where the one does that it guesses for: as many steps are its own, so they must be quick.
    """
    if lookup and draft is not None:
        raise SettingError("lookup", lookup, "false where a draft model guesses")
    if lookup:
        return PromptLookup()
    if draft is None:
        return None
    source = open_any(draft, form=form_for(engine))
    if source.tokenizer is None or source.tokenizer.vocabulary() != tokenizer.vocabulary():
        raise InputError(f"{draft}: a model that guesses needs the tokenizer of the one that answers")
    if uses_graphs(engine, device):
        return DraftModel(graph_backend(source, build_for_use(source).to(device).eval(), cache="float", say=say))
    backend = cpu_backend(source, engine=engine, say=say) if device == "cpu" else None
    return DraftModel(_plain_backend(source, engine, device, tokenizer.n_vocab) if backend is None else backend)


def uses_graphs(engine: str, device: str) -> bool:
    """Whether steps are replayed on a GPU."""
    return engine == "auto" and device.startswith("cuda")


def _plain_backend(source: ModelSource, engine: str, device: str, n_vocab: int) -> Backend:
    """Steps without kernels."""
    settings: dict[str, Any] = {"n_blocks": _n_blocks(source.settings), "block_size": BLOCK, "n_vocab": n_vocab}
    if computes_in_numpy(engine):
        from tessera.generate.numpy_step import NumpyStep

        return NumpyStep(numpy_decoder(source), **settings)
    from tessera.generate.torch_step import TorchStep

    return TorchStep(build_for_use(source).to(device).eval(), **settings)


def computes_in_numpy(engine: str) -> bool:
    """Whether what the kernels do not compute is for NumPy: where it is asked for, or `auto` finds no PyTorch."""
    return engine == "numpy" or (engine == "auto" and not installed("torch"))


def form_for(engine: str) -> Any:
    """As what the tensors of a run are opened (`tessera.models.Form`)."""
    return "torch" if engine == "torch" else "numpy"
