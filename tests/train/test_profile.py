"""The profile: what is measured, what is said of it, and the trace that is left."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from tessera.train.precision import FP32
from tessera.train.profile import StepProfiler, kind_of, product_peak, seconds_by_name, table

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
        ("aten::transpose", "calls"),
        ("autograd::engine::evaluate_function: MmBackward0", "calls"),
        ("_GatedBackward", "calls"),
        ("_FormulaBackward", "attention"),
        ("_Formula", "attention"),
        # kernels, as a GPU names them
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "products"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_3i", "attention"),
        ("triton_tem_fused_flex_attention_0", "attention"),
        ("triton_per_fused__to_copy_add_native_layer_norm_3", "softmax, norms and sums"),
        ("triton_poi_fused__to_copy_gelu_5", "single numbers"),
        ("_rms_norm_backward", "softmax, norms and sums"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add>", "single numbers"),
        ("Memcpy HtoD (Pinned -> Device)", "copies and fills"),
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


def test_on_a_gpu_a_kernel_counts_once() -> None:
    """An operation carries the time of its kernels, and so do they."""

    def event(key: str, device: DeviceType, micros: float, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key,
            device_type=device,
            self_device_time_total=micros,
            self_cpu_time_total=7.0,
            is_user_annotation=annotation,
        )

    events = [
        event("aten::mm", DeviceType.CPU, 3e6),
        event("nvjet", DeviceType.CUDA, 3e6),
        event("ProfilerStep#1", DeviceType.CUDA, 9e6, annotation=True),
    ]
    assert seconds_by_name(events, on_gpu=True) == {"nvjet": 3.0}
    assert seconds_by_name(events[:1], on_gpu=False) == {"aten::mm": 7e-6}
