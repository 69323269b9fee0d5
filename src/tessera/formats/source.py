"""A model in files that others wrote, opened but not yet read.

Opening reads headers and settings only and checks that they agree: every tensor that the decoder needs is there, in the
shape that the settings say. Nothing here needs PyTorch: `array` reads a tensor for NumPy. `build` makes PyTorch's
decoder of it (`torch_tensors.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.config import check
from tessera.errors import FormatError, InputError, SettingError
from tessera.model.plain import PIECES, plain_decoder
from tessera.model.settings import DecoderSettings
from tessera.tokenizers import Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tessera.formats.torch_tensors import Store
    from tessera.model.decoder import Decoder

FLOATS = ("fp32", "bf16", "fp16")
"""The types that a model is built in, and written in without quantization."""
Blocks = Callable[[str], tuple[str, Callable[[], np.ndarray]] | None]
"""Our name -> that matrix as it is in the file: the name of its type, and what reads its rows as bytes; None where the
file does not hold its rows one by one."""
_TABLE_BYTES = 2**27  # what the tables of positions may take in a model that is smaller than they are


@dataclass
class ModelSource:
    """What the files of a model say."""

    family: str
    """ "llama", "qwen3", ...; "tessera" for a file in our own names."""
    settings: DecoderSettings
    n_vocab: int
    tokenizer: Tokenizer | None
    names: Sequence[str]
    """Our names of its tensors."""
    read: "Callable[[str, torch.dtype], Tensor]"
    """Our name and the wanted float type -> that tensor, in memory of its own, whether or not the type can hold it."""
    array: Callable[[str], np.ndarray]
    """Our name -> that tensor as an array of float32, in memory of its own."""
    path: Path
    notes: list[str] = field(default_factory=list)
    """What the user should hear: what was assumed, and what was left out."""
    blocks: Blocks | None = None

    def build(self, dtype: "torch.dtype | None" = None, *, store: "Store | None" = None) -> "Decoder":
        """PyTorch's decoder with its weights (float32 unless said), in evaluation mode; at its peak this takes little
        more than the weights do.

        `store(model, name, tensor)` may keep a tensor in another form than the parameter `name`.
        """
        from tessera.formats.torch_tensors import FLOAT_TYPES, build_decoder

        return build_decoder(self, dtype or FLOAT_TYPES["fp32"], store)

    def tensor(self, name: str, dtype: "torch.dtype") -> "Tensor":
        """The tensor `name` as `dtype`; a `SettingError` where its numbers are too large for that type."""
        from tessera.formats.torch_tensors import checked_tensor

        return checked_tensor(self, name, dtype)


def check_settings(content: Mapping[str, Any]) -> DecoderSettings:
    """The settings of a decoder from a file. Those of a plain one, and those that NumPy has, are known without PyTorch,
    whose pieces others are checked against."""
    with suppress(SettingError):
        return check(DecoderSettings, content, slots=PIECES)
    from tessera.scratch.decoder import SLOTS

    with suppress(SettingError):
        return check(DecoderSettings, content, slots=SLOTS)
    return check(DecoderSettings, content)


def too_large(name: str, dtype: str) -> SettingError:
    """The error for a tensor that a type cannot hold."""
    wider = "fp32" if dtype == "bf16" else "bf16 or fp32"
    return SettingError("dtype", dtype, f"{wider}: {name!r} holds numbers that are too large for it")


def not_finite(name: str) -> InputError:
    """The error for a tensor that no file shall hold."""
    return InputError(f"the tensor {name!r} holds numbers that are NaN or infinite: such a model is not written")


def skeleton_shapes(path: Path, settings: DecoderSettings, n_vocab: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the decoder that `settings` describe, found without memory for any of them.

    Settings that contradict each other, or that ask for more positions than a model of this size would have, are a
    `FormatError`: they came from the file at `path`.
    """
    sizes = {"d_model": 2**24, "n_heads": 2**16, "context": 2**28, "n_layers": 10_000, "n_future": 10_000}
    for name, most in sizes.items():
        if getattr(settings, name) > most:
            raise FormatError(path, f"{name} = {getattr(settings, name)}: at most {most} is read")
    try:
        plain = plain_decoder(settings, n_vocab=n_vocab)
    except SettingError:
        plain = None
    if plain is not None and plain.position.scaling is None:
        shapes, tables = plain.shapes(), 2 * 4 * settings.context * plain.n_pairs
    else:  # another kind of decoder, or none at all: PyTorch's says what is wrong
        from tessera.formats.torch_tensors import meta_shapes

        shapes, tables = meta_shapes(path, settings, n_vocab)
    if tables > max(4 * sum(map(prod, shapes.values())), _TABLE_BYTES):
        raise FormatError(
            path, f"a context of {settings.context} tokens needs {tables >> 20} MiB of tables, more than the model"
        )
    return shapes


def check_shapes(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `FormatError` for the first tensor that is missing, of another shape, or left over."""
    for name, shape in expected.items():
        if name not in found:
            raise FormatError(path, f"the tensor {name!r} is missing")
        if found[name] != shape:
            raise FormatError(path, f"the tensor {name!r} is {list(found[name])}, and the settings say {list(shape)}")
    for name in found:
        if name not in expected:
            raise FormatError(path, f"the tensor {name!r} belongs to nothing that its settings name")
