import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tessera.ops.kernels import kernels_for


def test_without_a_gpu_there_are_none() -> None:
    assert kernels_for(torch.zeros(1)) is None


installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@installed
def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from tessera.ops.triton import gated, loss, norm, rotate

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tables = {"weight", "scales", "sums", "cos", "sin", "shares", "losses"}
    tensors = {"gate", "input", "out", "grad", "grad_gate", "grad_input", "rows", "grad_rows", "x", "logits"}
    types = dict.fromkeys(tables, "*fp32") | dict.fromkeys(tensors, "*bf16") | {"targets": "*i64"}
    types |= dict.fromkeys(("eps", "smoothing", "z", "cap"), "fp32")
    turn = {"WAY": -1, "INTERLEAVED": True, "BLOCK": 32, "REST": 16}
    step = {"CAPPED": True, "MAKE_GRADIENT": True, "BLOCK": 1024}
    kernels = [(gated._swiglu_forward, {"BLOCK": 1024}), (gated._swiglu_backward, {"BLOCK": 1024})]
    kernels += [(norm._rms_norm_forward, {"BLOCK": 1024}), (norm._rms_norm_backward, {"BLOCK": 1024})]
    for kernel, constants in [*kernels, (rotate._rotate_kernel, turn), (loss._loss_kernel, step)]:
        signature = {name: types.get(name, "i32") for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        assert ".entry" in compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]


@installed
def test_the_kernels_in_the_interpreter() -> None:
    file = str(Path(__file__).with_name("triton_kernels.py"))
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", file]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
