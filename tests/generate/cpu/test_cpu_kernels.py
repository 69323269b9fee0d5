"""The products on this processor, on one without AVX-512 and on one without any wide instructions."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.registry import cpu_target
from tests.generate.cpu.cpu_reference import Map, filled, rounded

from tessera.errors import InputError
from tessera.formats.gguf.blocks import KINDS, quantize
from tessera.generate.cpu import blocks
from tessera.generate.cpu.kernels import GROUP, GROUP_BLOCK, MULTIPLY, OFFSETS, SCALES, STARTS
from tessera.generate.cpu.panels import STORAGES, UNPACK, pack
from tessera.generate.cpu.products import dot_by
from tessera.generate.cpu.vectors import features_of, load_ints, no_ints, possible_products, sum_of_ints

N_ROWS, WIDTH, N_OUT = 13, 96, 40


def numbers() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    weight = random.standard_normal((N_OUT, WIDTH)).astype(np.float32)
    x = random.standard_normal((N_ROWS, WIDTH)).astype(np.float32)
    weight[3], x[2, 32:64] = 0, 0
    weight[5, 7], x[1, 40] = 1e-6, 300  # halves below the normal ones, and a block of one large number
    return weight, x


def groups_of(x: np.ndarray) -> np.ndarray:
    """Rows in 8 bits as the kernels take them, laid out by hand."""
    x8, scales = rounded(x)
    made = np.zeros((-(-len(x) // GROUP), x8.shape[1], GROUP_BLOCK), np.uint8)
    for row in range(len(x)):
        group, lane = divmod(row, GROUP)
        sums = x8[row].sum(axis=-1)
        made[group, :, 32 * lane : 32 * lane + 32] = x8[row].astype(np.int8).view(np.uint8)
        for place, values in (
            (SCALES, scales[row]),
            (STARTS, (-128 * sums).astype(np.int32)),
            (OFFSETS, scales[row] * sums.astype(np.float32)),
        ):
            made[group, :, place + 4 * lane : place + 4 * lane + 4] = values.view(np.uint8).reshape(-1, 4)
    return made


def product(name: str, n_rows: int) -> np.ndarray:
    """By the kernel."""
    weight, x = numbers()
    storage, n_blocks = STORAGES[name], WIDTH // 32
    panels = pack(storage, blocks.encode(name, weight, "w"))
    room = np.zeros((2 * GROUP, 16 * len(panels)), np.float32)
    x = np.ascontiguousarray(x[:n_rows])
    taken = groups_of(x) if storage.takes_bytes else np.vstack([x, np.zeros_like(x)])
    MULTIPLY[name](
        panels.ctypes.data,
        storage.scales_bytes(n_blocks),
        storage.panel_bytes(n_blocks),
        n_blocks,
        taken.ctypes.data,
        taken.strides[0],
        room.ctypes.data,
        room.strides[0],
        0,
        len(panels),
        n_rows,
    )
    return room[:n_rows, :N_OUT]


@pytest.mark.parametrize("name", STORAGES)
@pytest.mark.parametrize("n_rows", [1, 3, 5, 9, 13])
def test_every_bit_of_a_product(name: str, n_rows: int) -> None:
    weight, x = numbers()
    np.testing.assert_array_equal(product(name, n_rows), Map(weight, name)(filled(x[:n_rows], 32)))


@pytest.mark.parametrize("name", STORAGES)
def test_a_row_is_read_again_as_it_was_packed(name: str) -> None:
    weight, _ = numbers()
    storage, row = STORAGES[name], np.zeros(WIDTH, np.float32)
    panels = pack(storage, blocks.encode(name, weight, "w"))
    for i in range(N_OUT):
        UNPACK[name](
            panels[i // 16].ctypes.data, i % 16, WIDTH // 32, storage.scales_bytes(WIDTH // 32), row.ctypes.data
        )
        np.testing.assert_array_equal(row, Map(weight, name).numbers[i])


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1"])
def test_blocks_are_those_of_gguf_files(name: str) -> None:
    weight, _ = numbers()
    expected = quantize(KINDS[name], weight.ravel()).reshape(N_OUT, -1)
    np.testing.assert_array_equal(blocks.encode(name, weight, "w"), expected)


@pytest.mark.parametrize(("name", "number"), [("fp32", float("inf")), ("bf16", 3.4e38), ("q8_0", 1e9)])
def test_what_a_storage_cannot_hold(name: str, number: float) -> None:
    with pytest.raises(InputError, match="'w' holds numbers"):
        blocks.encode(name, np.full((2, 32), number, np.float32), "w")


@pytest.mark.parametrize("kernel", [*MULTIPLY.values(), *UNPACK.values()])
def test_a_kernel_can_be_kept_for_the_next_process(kernel) -> None:
    """What stands around a function is part of its key in the cache, and other compiled functions differ each time."""
    assert kernel.py_func.__closure__ is None


@pytest.mark.parametrize("name", possible_products(features_of(cpu_target.target_context)))
def test_each_product_of_bytes(name: str) -> None:
    """All that this processor can make, by whichever way: 16 rows of 4 unsigned bytes by 4 signed ones, and a sum."""
    dot, nothing = dot_by(name), no_ints(1)

    @numba.njit
    def multiply(weights, x):  # type: ignore[no-untyped-def]
        return sum_of_ints(dot(dot(nothing(), load_ints(weights), x, 0), load_ints(weights + 64), x + 4, 0))

    made = np.random.default_rng(0)
    weights = made.integers(0, 256, (2, 16, 4), dtype=np.uint8)
    x = made.integers(-128, 128, (2, 4), dtype=np.int8)
    weights[0, 0], x[0] = 255, -128
    assert multiply(weights.ctypes.data, x.ctypes.data) == np.einsum("vrc,vc->", weights.astype(int), x.astype(int))


PROGRAM = """
import sys
import numpy as np
from tests.generate.cpu.test_cpu_kernels import product
from tessera.generate.cpu.vectors import byte_product
from numba.core.registry import cpu_target
features = {part[1:] for part in cpu_target.target_context.codegen().magic_tuple()[2].split(",") if part[:1] == "+"}
print(byte_product(features))
np.savez(sys.argv[1], **{name: product(name, 13) for name in sys.argv[2:]})
"""


@pytest.mark.parametrize(("features", "way", "exact"), [("+avx2,+fma,+f16c", "avx2", True), ("", "plain", False)])
@pytest.mark.parametrize("names", [("q8_0",), pytest.param(tuple(STORAGES), marks=pytest.mark.slow)])
def test_other_processors(tmp_path: Path, features: str, way: str, exact: bool, names: tuple[str, ...]) -> None:
    """The same bits where numbers are rounded once in a b + c, else the same but for that."""
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "made.npz"), *names]
    root = Path(__file__).parents[3]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), *(path for path in sys.path if path)])
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == way
    made = np.load(tmp_path / "made.npz")
    for name in names:
        np.testing.assert_allclose(made[name], product(name, 13), rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)
