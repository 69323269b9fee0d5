"""The profile: what is measured, what is said of it, and the trace that is left."""

import json
from pathlib import Path

import pytest
import torch

from tessera.train.precision import FP32
from tessera.train.profile import StepProfiler, kind_of, product_peak, table

CPU = torch.device("cpu")


def test_it_measures_the_steps_that_it_should_and_leaves_a_trace(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path / "profile", 1e6, CPU, FP32, skip=2, steps=2)
    a = torch.randn(64, 64)
    for number in range(6):
        with profiler.step():
            for _ in range(number + 1):
                torch.mm(a, a)
        profiler.saw(100 * (number + 1), 0.5)
    lines = profiler.lines()
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    assert (
        sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == 3 + 4
    )  # of the third and the fourth
    assert any("products" in line for line in lines)
    assert "400 tokens/s x 1.0 MFLOP a token" in lines[-1]  # the second step: the first is not counted
    assert str(tmp_path / "profile" / "trace.json") in lines[-2]


def test_a_run_that_is_too_short_says_so(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path / "profile", 1e6, CPU, FP32)
    with profiler.step():
        pass
    assert profiler.lines() == ["no profile: it needs 7 steps"]
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::native_layer_norm", "softmax, norms and sums"),
        ("aten::copy_", "copies and fills"),
        ("aten::gelu", "single numbers"),
    ],
)
def test_operations_by_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_the_table_adds_up() -> None:
    lines = table({"aten::mm": 3.0, "aten::addmm": 1.0, "aten::gelu": 4.0}, wall=20.0, n_steps=2)
    assert "10,000.0 ms" in lines[0]
    assert [line.split() for line in lines[1:3]] == [["50.0%", "products"], ["50.0%", "single", "numbers"]]
    assert lines[4].split() == ["50.0%", "2000.00", "ms", "a", "step", "aten::gelu"]


def test_the_peak_is_that_of_a_product() -> None:
    peak = product_peak(CPU, FP32, size=256, rounds=2)
    assert 1e8 < peak < 1e14
