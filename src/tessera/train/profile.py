"""Where a step's time goes: a few steps under PyTorch's profiler, added up by what was being done.

The utilisation (MFU, Chowdhery et al. 2022, "PaLM", appendix B) is the arithmetic that the model needs for its tokens,
whatever was computed twice, over what this machine does in one large product of the same precision.
"""

import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tessera.train.precision import Precision

KINDS = {
    "attention": ("scaled_dot_product", "flash", "flex_attention", "fmha", "efficient_attention", "_Formula"),
    "optimizer": ("_fused_adam", "FusedAdam", "_foreach", "multi_tensor_apply", "Optimizer"),
    "products": (
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::linear",
        "_scaled_mm",
        "_int_mm",
        "mkldnn",
        "gemm",
        "xmma",
        "cutlass",
        "nvjet",
    ),
    # Of what the compiler has fused, by the kind of its loops: over rows that are summed up, or over single numbers.
    "softmax, norms and sums": ("triton_red", "triton_per", "softmax", "norm", "Norm", "sum", "mean", "amax", "reduce"),
    "single numbers": ("triton_poi", "elementwise", "vectorized"),
    "copies and fills": ("copy", "fill", "zero", "cat", "index", "clone", "Memcpy", "Memset", "empty", "gather"),
    "calls": (
        "autograd::",
        "Backward",
        "ProfilerStep",
        "aten::detach",
        "aten::view",
        "aten::_unsafe_view",
        "aten::reshape",
        "aten::t",
        "aten::transpose",
        "aten::as_strided",
        "aten::expand",
        "aten::slice",
        "aten::select",
        "aten::split",
        "aten::narrow",
        "aten::unsqueeze",
        "aten::squeeze",
        "aten::permute",
        "cuda",
    ),
}
"""The first kind one of whose words is in an operation's name; an exact name of "calls" only as a whole. What has none
is arithmetic on single numbers. Calls are what the processor does between the operations, and where it views memory."""
OTHER = "single numbers"
MOST = 12
LONGEST = 76
"""Letters of a name that are shown: a kernel's is as long as its template."""


@dataclass
class StepProfiler:
    """Measures `steps` steps after the first `skip`, and writes `trace.json` (chrome://tracing) into `folder`.

    The speed is that of the steps before, without the profiler, but for the first.
    """

    folder: Path
    flops_per_token: float
    device: torch.device
    precision: Precision
    skip: int = 4
    steps: int = 3

    def __post_init__(self) -> None:
        self.report: list[str] = []
        self._n_seen = 0
        self._profile: Any = None
        self._seconds = 0.0
        self._rates: list[float] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around each step of the loop."""
        self._n_seen += 1
        if not self.skip < self._n_seen <= self.skip + self.steps:
            yield
            return
        if self._profile is None:
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it writes between the lines of the run
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            self._profile = profile(activities=self._activities()).__enter__()
        start = time.perf_counter()
        yield
        self._wait()
        self._seconds += time.perf_counter() - start
        if self._n_seen == self.skip + self.steps:
            self._finish()

    def saw(self, n_tokens: int, seconds: float) -> None:
        """Of the step that has just been made."""
        if 1 < self._n_seen <= self.skip:
            self._rates.append(n_tokens / seconds)

    def _activities(self) -> list[ProfilerActivity]:
        return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        """To be called when the training ends, however it does: PyTorch's profiler, left open, ends the process with a
        segmentation fault."""
        if self._profile is not None:
            self._profile.__exit__(None, None, None)
            self._profile = None

    def _finish(self) -> None:
        measured = self._profile
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        measured.export_chrome_trace(str(self.folder / "trace.json"))
        on_gpu = self.device.type == "cuda"
        times = seconds_by_name(measured.key_averages(), on_gpu=on_gpu)
        self.report = table(times, self._seconds, self.steps)
        if on_gpu:
            held, most = torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device)
            self.report.append(f"memory: {held / 1e9:.2f} GB between two steps, {most / 1e9:.2f} GB at most within one")
        self.report.append(f"trace of {self.steps} steps: {self.folder / 'trace.json'}")

    def lines(self) -> list[str]:
        """What was found; to be asked for when the training is over, as the peak is measured now."""
        if not self.report:
            return [f"no profile: it needs {self.skip + self.steps} steps"]
        return [*self.report, self._utilisation()]

    def _utilisation(self) -> str:
        rate, peak = median(self._rates), product_peak(self.device, self.precision)
        kind = {"fp8": "bf16", "int8": "fp32"}.get(self.precision.name, self.precision.name)
        return (
            f"MFU {rate * self.flops_per_token / peak:.0%}: {rate:,.0f} tokens/s x {self.flops_per_token / 1e6:,.1f} "
            f"MFLOP a token, of {peak / 1e9:,.0f} GFLOP/s in a large {kind} product"
        )


def seconds_by_name(events: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """Of the profiler's averages: each moment under one name only.

    On a GPU those of its kernels. The operations that started them carry the same time once more.
    """
    times: dict[str, float] = {}
    for event in events:
        if on_gpu and (event.device_type == DeviceType.CPU or event.is_user_annotation):
            continue
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        times[event.key] = times.get(event.key, 0.0) + micros / 1e6
    return times


def kind_of(name: str) -> str:
    """What an operation does, by its name.

    >>> kind_of("aten::addmm"), kind_of("aten::gelu"), kind_of("aten::t"), kind_of("aten::tanh")
    ('products', 'single numbers', 'calls', 'single numbers')
    """
    for kind, words in KINDS.items():
        if any(name == word if word.startswith("aten::") and kind == "calls" else word in name for word in words):
            return kind
    return OTHER


def table(times: dict[str, float], wall: float, n_steps: int) -> list[str]:
    """Seconds by operation as a table by kind, then the operations that take longest; `wall` is that of all steps."""
    kinds: dict[str, float] = {}
    for name, seconds in times.items():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + seconds
    found = [f"a step takes {1000 * wall / n_steps:,.1f} ms under the profiler; of the time in operations:"]
    total = sum(kinds.values()) or math.inf
    for name, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
        found.append(f"  {seconds / total:6.1%}  {name}")
    found.append("the operations that take longest:")
    for name, seconds in sorted(times.items(), key=lambda item: -item[1])[:MOST]:
        found.append(f"  {seconds / total:6.1%}  {1000 * seconds / n_steps:9.2f} ms a step  {name[:LONGEST]}")
    return found


def product_peak(device: torch.device, precision: Precision, *, size: int | None = None, rounds: int = 5) -> float:
    """FLOP/s of one large product in `precision`: the best of a few rounds, after one to warm up."""
    size = size or (8192 if device.type == "cuda" else 1536)
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator, device=device).to(precision.dtype) for _ in range(2))
    out, best = torch.empty_like(a), math.inf
    for number in range(rounds + 1):
        start = time.perf_counter()
        with precision.step():
            torch.mm(a, b, out=out)
        out[0, 0].item()  # waits
        if number:
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
