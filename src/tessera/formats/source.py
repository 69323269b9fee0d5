"""A model in files that others wrote, opened but not yet read.

Opening reads headers and settings only and checks that they agree: every tensor that the decoder needs is there, in the
shape that the settings say. `build` then makes the decoder without memory for its parameters and fills it tensor by
tensor, so that the model is never in memory twice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from tessera.errors import FormatError, InputError, SettingError
from tessera.model.decoder import Decoder
from tessera.model.settings import DecoderSettings
from tessera.tokenizers import Tokenizer

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The types that a model is built in, and written in without quantization."""
Blocks = Callable[[str], tuple[str, Callable[[], Tensor]] | None]
"""Our name -> that matrix as it is in the file: the name of its type, and what reads its rows as bytes; None where the
file does not hold its rows one by one."""
Store = Callable[[nn.Module, str, Tensor], None]
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
    read: Callable[[str, torch.dtype], Tensor]
    """Our name and the wanted float type -> that tensor, in memory of its own, whether or not the type can hold it."""
    path: Path
    notes: list[str] = field(default_factory=list)
    """What the user should hear: what was assumed, and what was left out."""
    blocks: Blocks | None = None

    def build(self, dtype: torch.dtype = torch.float32, *, store: "Store | None" = None) -> Decoder:
        """The decoder with its weights, in evaluation mode; at its peak this takes little more than the weights do.

        `store(model, name, tensor)` may keep a tensor in another form than the parameter `name`.
        """
        with parameters_on_meta():
            model = Decoder.from_settings(self.settings, n_vocab=self.n_vocab)
        expected = model.state_dict()
        if set(expected) != set(self.names):
            differing = sorted(set(expected) ^ set(self.names))
            raise FormatError(self.path, f"{len(differing)} tensors are missing or left over, such as {differing[0]!r}")
        for name in self.names:
            (store or put)(model, name, self.tensor(name, dtype))
        return model.eval()

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor `name` as `dtype`; a `SettingError` where its numbers are too large for that type."""
        found = self.read(name, dtype)
        if dtype.itemsize < 4 and not is_finite(found) and is_finite(self.read(name, torch.float32)):
            known = {each: named for named, each in FLOATS.items()}
            raise too_large(name, known.get(dtype, str(dtype)))
        return found


def float_named(name: str) -> torch.dtype:
    """The type of `FLOATS` that is called `name`."""
    if name not in FLOATS:
        raise SettingError("dtype", name, f"one of {', '.join(FLOATS)}")
    return FLOATS[name]


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite, found without memory for a mask."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    least, most = tensor.aminmax()  # either is NaN where any number is
    return bool(least.isfinite() and most.isfinite())


def too_large(name: str, dtype: str) -> SettingError:
    """The error for a tensor that a type cannot hold."""
    wider = "fp32" if dtype == "bf16" else "bf16 or fp32"
    return SettingError("dtype", dtype, f"{wider}: {name!r} holds numbers that are too large for it")


def not_finite(name: str) -> InputError:
    """The error for a tensor that no file shall hold."""
    return InputError(f"the tensor {name!r} holds numbers that are NaN or infinite: such a model is not written")


def converted(name: str, tensor: Tensor, dtype: str) -> Tensor:
    """A tensor as it is written: as the type of `FLOATS` that is called `dtype`, every number of it finite."""
    made = tensor.detach().to(FLOATS[dtype])
    if not is_finite(made):
        raise too_large(name, dtype) if is_finite(tensor.detach()) else not_finite(name)
    return made


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
        with torch.device("meta"):
            model = Decoder.from_settings(settings, n_vocab=n_vocab)
    except SettingError as error:
        raise FormatError(path, f"its settings make no model: {error}") from None
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:  # torch: a shape too large to multiply out
        raise FormatError(path, f"its settings make no model ({str(error).splitlines()[0]})") from None
    weights = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    tables = 4 * sum(buffer.numel() for buffer in model.buffers())
    if tables > max(weights, _TABLE_BYTES):
        raise FormatError(
            path, f"a context of {settings.context} tokens needs {tables >> 20} MiB of tables, more than the model"
        )
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


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
