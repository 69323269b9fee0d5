"""In which numbers a step computes: chosen by measuring the machine once, said, and kept with the run.

The weights, the gradients of a whole batch and the optimizer's state are fp32 in any case. What differs are products:

    fp32   real fp32: 24 bits of mantissa, on a GPU too
    tf32   fp32 numbers of which a GPU's product reads 11 bits of mantissa, summed up in fp32; a GPU of 2020 or later
    bf16   numbers of 16 bits with the range of fp32, by autocast (Micikevicius et al. 2018, "Mixed Precision Training")
    fp16   of 16 bits with more digits and little range, so that it needs a loss scaler beside it
    fp8    the linear layers of the blocks in 8 bits (`tessera.ops.float8`), all else as in bf16; a GPU of compute
           capability 8.9 or later. Never taken by "auto", as it is not the same model to the last percent
    int8   the linear layers of the blocks in integers of 8 bits, summed up exactly (`tessera.ops.int8`), all else in
           fp32; a CPU whose 8-bit products are exact. For processors with VNNI and without bf16 units, wide models

Two libraries multiply fp32 matrices on a CPU: MKL, which is PyTorch's choice and slow on some processors, and oneDNN.
PyTorch goes to oneDNN for fp32 only under a flag that allows it bf16 arithmetic; on a processor without such units the
result is fp32 all the same, on one with them it is not. So the flag is set where a product under it was measured to be
as exact as without, for the step alone, and put back after it.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.errors import SettingError
from tessera.model.decoder import Decoder
from tessera.model.float8 import use_float8
from tessera.model.int8 import use_int8
from tessera.ops.float8 import MULTIPLE
from tessera.ops.int8 import int8_linears, is_exact
from tessera.train.settings import Choice

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,  # of what is not a product of a block's linear layer
    "int8": torch.float32,  # the same
}
NEEDS = {"tf32": (8, 0), "fp8": (8, 9)}
"""The least compute capability of a GPU, where no other device will do."""

WORTH = 1.2
"""So many times faster another way must be to be taken."""
TOO_SMALL = 1e-3
"""Seconds of a layer in fp32 below which it is not worth a look: there the time does not go into arithmetic."""
EXACT = 4.0
"""A product is as exact as fp32 if its largest error is below so many times that of PyTorch's own."""
ROWS = {"cpu": 256, "cuda": 8192}
"""Of a batch, how many are enough to tell."""
ROUNDS = 4
LEAST_WIDTH = 256
"""Of a model that "auto" tries int8 for: in a narrower one rounding takes what the products save."""
HOPELESS = 2.0
"""What takes so many times longer in its first round is not measured again."""


@dataclass(frozen=True)
class Shape:
    """Of a model, as far as its products and its attention go."""

    d_model: int
    n_heads: int
    context: int
    batch_size: int
    compiled: bool = False
    """Whether its blocks are, as was asked for."""


@dataclass(frozen=True)
class Precision:
    """A choice and its reason; `onednn` sends what fp32 products there are to oneDNN."""

    name: str = "fp32"
    onednn: bool = False
    reason: str = "the default"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around forward and backward: the flag for fp32 products, put back as it was."""
        if self.onednn:
            with fp32_through_onednn():
                yield
        elif self.name == "tf32":
            with products_in_tf32():
                yield
        else:
            yield

    def prepare(self, model: Decoder) -> str:
        """Make what must be made of a model before it trains in this precision; what was done, in words."""
        if self.name == "int8":
            return f"{use_int8(model.blocks, model.future)} linear layers of the blocks train in 8 bits"
        if self.name != "fp8":
            return ""
        n, of = use_float8(model)
        if not n:
            raise SettingError("train.precision", "fp8", f"a model with linear layers of multiples of {MULTIPLE}")
        return f"{n} of {of} linear layers of the blocks train in 8 bits"

    def forward(self, device: torch.device) -> Any:
        """Around a forward pass: autocast, unless all is fp32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.dtype, cache_enabled=True)

    def describe(self) -> str:
        route = ", fp32 products through oneDNN" if self.onednn else ""
        return f"precision {self.name}{route}: {self.reason}"

    def written(self) -> dict[str, Any]:
        """As JSON-able data; `Precision(**written)` reads it back."""
        return asdict(self)


FP32 = Precision()


@contextmanager
def fp32_through_onednn() -> Iterator[None]:
    """Products of fp32 matrices on the CPU go to oneDNN, which may use bf16 arithmetic where the processor has it."""
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextmanager
def products_in_tf32() -> Iterator[None]:
    """Products of fp32 matrices on a GPU read 11 bits of mantissa."""
    # Not by torch.backends.cuda.matmul.fp32_precision: PyTorch's compiler reads the older of the two flags, and PyTorch
    # refuses to tell it where the newer one was set.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose(choice: Choice, device: torch.device, shape: Shape, *, exact: bool = False) -> Precision:
    """What `train.precision` means for a model of `shape` on `device`; a `SettingError` if the device cannot.

    `exact`: on a CPU auto stays with fp32, for what compares the model with what it was a moment ago.
    """
    if choice == "auto":
        return _measured(device, shape, torch.get_num_threads(), exact)
    if choice != "fp32":
        _check_runs(choice, device, shape)
    return Precision(choice, reason="asked for")


def go_on(kept: Precision, device: torch.device, shape: Shape) -> Precision:
    """What "auto" chose when the run began, on the machine that it is resumed on; a `SettingError` if that cannot.

    Where oneDNN would round to bf16 here, the products of a run in fp32 go to PyTorch's own library instead.
    """
    if kept.onednn and not _onednn_is_exact(shape):
        return Precision(kept.name, reason="oneDNN, which the run began with, rounds to bf16 on this machine")
    if kept.name != "fp32":
        _check_runs(kept.name, device, shape)
    return kept


def _check_runs(choice: str, device: torch.device, shape: Shape) -> None:
    """One small product and its gradient, in the precision that was asked for."""
    if choice == "int8":
        _check_int8(device, shape)
        return
    if (needed := NEEDS.get(choice)) is not None:
        found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        if found is None or found < needed:
            has = "which is no GPU" if found is None else f"which has {found[0]}.{found[1]}"
            expected = f"for a GPU of compute capability {needed[0]}.{needed[1]} or later, not {device}, {has}"
            raise SettingError("train.precision", choice, f"{expected}: take auto, bf16 or fp32")
        return
    try:
        with Precision(choice).forward(device):
            x = torch.ones(8, 8, device=device, requires_grad=True)
            (x @ x).float().sum().backward()
    except (RuntimeError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise SettingError("train.precision", choice, f"a precision that {device} computes in ({why})") from None


def _check_int8(device: torch.device, shape: Shape) -> None:
    if device.type != "cpu":
        raise SettingError("train.precision", "int8", f"for a CPU, not {device}: take auto, bf16 or fp32")
    if shape.compiled:
        raise SettingError("train.precision", "int8", "for blocks that are not compiled: take train.compile=false")
    if not is_exact():
        raise SettingError("train.precision", "int8", "for a CPU that multiplies integers of 8 bits exactly: take fp32")


@lru_cache
def _measured(device: torch.device, shape: Shape, threads: int, exact: bool) -> Precision:
    """The fastest on this machine, with the figures as the reason. `threads` is a part of the machine."""
    if device.type not in ROWS:
        return Precision(reason=f"nothing else is tried on {device.type}")
    fp32 = _layer_seconds(device, shape, FP32)
    if fp32 < TOO_SMALL and device.type == "cpu":
        return Precision(reason=f"a layer takes {_ms(fp32)}, too little to gain from fewer bits")
    best, best_seconds = FP32, fp32
    said = [f"fp32 {_ms(fp32)}"]
    for candidate in _candidates(device, shape):
        if exact and device.type == "cpu" and candidate.name != "fp32":
            continue
        if candidate.onednn and not _onednn_is_exact(shape):
            said.append("fp32 through oneDNN not tried, as it rounds to bf16 here")
            continue
        seconds = _layer_seconds(device, shape, candidate, limit=HOPELESS * best_seconds)
        said.append(f"{'fp32 through oneDNN' if candidate.onednn else candidate.name} {_ms(seconds)}")
        if seconds * WORTH < best_seconds:
            best, best_seconds = candidate, seconds
    return Precision(best.name, best.onednn, f"a layer's products and attention take {', '.join(said)}")


def _candidates(device: torch.device, shape: Shape) -> list[Precision]:
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return [Precision("bf16" if native else "fp16")]
    found = [Precision("fp32", onednn=True), Precision("bf16")]
    if shape.d_model >= LEAST_WIDTH and not shape.compiled and is_exact():
        found.append(Precision("int8"))
    return found


def _onednn_is_exact(shape: Shape) -> bool:
    """Whether a product through oneDNN has no larger error than MKL's, each against fp64."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(256, shape.d_model, generator=generator)
    b = torch.randn(shape.d_model, 256, generator=generator)
    exact = a.double() @ b.double()
    with fp32_through_onednn():
        through = a @ b
    return _error(through, exact) <= EXACT * max(_error(a @ b, exact), torch.finfo(torch.float32).eps)


def _error(product: Tensor, exact: Tensor) -> float:
    found = (product.double() - exact).abs().max().item()
    return found if math.isfinite(found) else math.inf


def _layer_seconds(device: torch.device, shape: Shape, precision: Precision, *, limit: float = math.inf) -> float:
    """A layer's products (12 width^2 weights) and attention over a part of a batch, forward and backward.

    It is measured roughly if it takes longer than `limit`.
    """
    rows = min(shape.batch_size * shape.context, ROWS[device.type])
    T = min(shape.context, rows)
    generator = torch.Generator(device).manual_seed(0)  # the global one is the run's

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device).requires_grad_()

    x, weight = random(rows, shape.d_model), random(4 * shape.d_model, shape.d_model)
    heads = (max(1, rows // T), shape.n_heads, T, max(8, shape.d_model // shape.n_heads))
    q, k, v = (random(*heads) for _ in range(3))

    def product() -> None:
        with precision.step():
            with precision.forward(device):
                in_8_bits = precision.name == "int8"
                y = int8_linears(x, [(weight, None)])[0] if in_8_bits else F.linear(x, weight)
            y.backward(y.detach())

    def attend() -> None:
        with precision.step():
            with precision.forward(device):
                inputs = [each.to(precision.dtype) for each in (q, k, v)]
                y = F.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], is_causal=True)
            y.backward(y.detach())

    return 3 * _seconds(product, device, limit / 3) + _seconds(attend, device, limit)


def _seconds(action: Callable[[], None], device: torch.device, limit: float) -> float:
    """The best of a few rounds after one to warm up."""
    best = math.inf
    for number in range(ROUNDS + 1):
        _wait(device)
        start = time.perf_counter()
        action()
        _wait(device)
        if number:
            best = min(best, time.perf_counter() - start)
            if best > limit:
                break
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
