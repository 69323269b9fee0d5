"""Models and files as PyTorch's tensors: a decoder filled from its files, and tensors as they are written.

Apart from the rest of this room, which reads files without PyTorch. A decoder is made without memory for its parameters
and filled tensor by tensor, so that the model is never in memory twice.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from tessera.errors import FormatError, InputError, SettingError
from tessera.formats.families.links import Read
from tessera.formats.source import FLOATS, not_finite, skeleton_shapes, too_large
from tessera.model.decoder import Decoder
from tessera.model.settings import DecoderSettings

if TYPE_CHECKING:
    from tessera.formats.source import ModelSource

FLOAT_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""`FLOATS` as PyTorch has them."""
Store = Callable[[nn.Module, str, Tensor], None]


class TorchRead(Read):
    """Reads tensors of the type `dtype`; `fetch` takes the type as its second argument."""

    def __init__(self, fetch: Callable[[str, torch.dtype, Tensor | None], Tensor], dtype: torch.dtype) -> None:
        super().__init__(lambda name, out: fetch(name, dtype, out))
        self._typed, self._dtype = fetch, dtype

    def plus_one(self, name: str) -> Tensor:
        return self._typed(name, torch.float32, None).add_(1.0).to(self._dtype)

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self._dtype)

    def own(self, found: Tensor) -> Tensor:
        return found.clone(memory_format=torch.contiguous_format)


def build_decoder(source: "ModelSource", dtype: torch.dtype, store: Store | None) -> Decoder:
    """The decoder of a source with its weights, in evaluation mode."""
    with parameters_on_meta():
        model = Decoder.from_settings(source.settings, n_vocab=source.n_vocab)
    expected = model.state_dict()
    if set(expected) != set(source.names):
        differing = sorted(set(expected) ^ set(source.names))
        raise FormatError(source.path, f"{len(differing)} tensors are missing or left over, such as {differing[0]!r}")
    for name in source.names:
        (store or put)(model, name, source.tensor(name, dtype))
    return model.eval()


def checked_tensor(source: "ModelSource", name: str, dtype: torch.dtype) -> Tensor:
    """The tensor `name` as `dtype`; a `SettingError` where its numbers are too large for that type."""
    found = source.read(name, dtype)
    if dtype.itemsize < 4 and not is_finite(found) and is_finite(source.read(name, torch.float32)):
        known = {each: named for named, each in FLOAT_TYPES.items()}
        raise too_large(name, known.get(dtype, str(dtype)))
    return found


def float_named(name: str) -> torch.dtype:
    """The type of `FLOATS` that is called `name`."""
    if name not in FLOAT_TYPES:
        raise SettingError("dtype", name, f"one of {', '.join(FLOATS)}")
    return FLOAT_TYPES[name]


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite, found without memory for a mask."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    least, most = tensor.aminmax()  # either is NaN where any number is
    return bool(least.isfinite() and most.isfinite())


def converted(name: str, tensor: Tensor, dtype: str) -> Tensor:
    """A tensor as it is written: as the type of `FLOAT_TYPES` that is called `dtype`, every number of it finite."""
    made = tensor.detach().to(float_named(dtype))
    if not is_finite(made):
        raise too_large(name, dtype) if is_finite(tensor.detach()) else not_finite(name)
    return made


def meta_shapes(path: Path, settings: DecoderSettings, n_vocab: int) -> tuple[dict[str, tuple[int, ...]], int]:
    """The shapes of a decoder's tensors, and the bytes of its tables, found without memory for any of them.

    Settings that contradict each other are a `FormatError`: they came from the file at `path`.
    """
    try:
        with torch.device("meta"):
            model = Decoder.from_settings(settings, n_vocab=n_vocab)
    except SettingError as error:
        raise FormatError(path, f"its settings make no model: {error}") from None
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:  # torch: a shape too large to multiply out
        raise FormatError(path, f"its settings make no model ({str(error).splitlines()[0]})") from None
    tables = 4 * sum(buffer.numel() for buffer in model.buffers())
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, tables


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules made within get their parameters without memory, and their buffers (tables of positions) as ever.

    A parameter is empty memory for a moment, which the system does not provide before it is written to.
    """

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Give the parameter (or buffer) `name` the memory of `tensor`."""
    owner_name, _, last = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    shape = tuple(getattr(owner, last).shape)
    if tuple(tensor.shape) != shape:
        raise SettingError(name, tuple(tensor.shape), f"the shape {shape}")
    if last in owner._parameters:
        owner.register_parameter(last, nn.Parameter(tensor))
    else:
        owner.register_buffer(last, tensor)


def check_complete(settings: DecoderSettings, n_vocab: int, tensors: Mapping[str, Tensor]) -> None:
    """Raise `InputError` unless `tensors` are those of a model of these settings, before any is written."""
    for name, shape in skeleton_shapes(Path("model"), settings, n_vocab).items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise InputError(f"the tensor {name!r} is {found or 'missing'}, where the model's settings say {shape}")
