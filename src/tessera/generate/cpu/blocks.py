"""Rows of floats as rows of bytes, of the storages that `panels.py` packs: to the nearest, block by block of 32.

The blocks are those of GGUF files: d and q for x ~ d q (q8_0), d (q - 8) (q4_0) and d q + m (q4_1), with d and m in
half precision. q is made with d as it was before it was rounded to half precision, as llama.cpp does.
"""

import numpy as np

from tessera.errors import InputError
from tessera.generate.cpu.panels import BLOCK

LARGEST = dict.fromkeys(("fp32", "q8_0", "q4_0", "q4_1"), np.inf) | {"bf16": 255.5 * 2.0**120}
"""What a number must be below: from there on it is rounded to infinity."""


def encode(storage: str, rows: np.ndarray, name: str) -> np.ndarray:
    """(n, bytes) of float32 rows (n, width); the width is filled up with zeros to whole blocks."""
    width = -(-rows.shape[1] // BLOCK) * BLOCK
    full = np.zeros((len(rows), width), np.float32)
    full[:, : rows.shape[1]] = rows
    least, most = (float(each) for each in (full.min(initial=0.0), full.max(initial=0.0)))
    if not (-LARGEST[storage] < least and most < LARGEST[storage]):  # nor where one is NaN
        raise InputError(f"the tensor {name!r} holds numbers that are not finite, or too large for {storage}")
    if storage == "fp32":
        return full.view(np.uint8)
    if storage == "bf16":
        return to_bf16(full).view(np.uint8)
    with np.errstate(over="ignore"):
        found = ENCODE[storage](full.reshape(-1, BLOCK))
    scales = np.stack([found[field] for field in ("d", "m") if field in (found.dtype.names or ())])
    if not np.isfinite(scales).all():
        raise InputError(f"the tensor {name!r} holds numbers that are too large for {storage}")
    return found.view(np.uint8).reshape(len(rows), -1)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """The upper halves of finite numbers, rounded to the nearest, of two equally near to the even one."""
    bits = x.view(np.uint32)
    bits = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (bits >> np.uint32(16)).astype("<u2")


def _divided(x: np.ndarray, d: np.ndarray) -> np.ndarray:
    """x / d, and 0 where d is."""
    return x * np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


def _made(fields: list[tuple[str, str, int]], n: int) -> np.ndarray:
    return np.empty(n, np.dtype([(name, kind, size) if size > 1 else (name, kind) for name, kind, size in fields]))


def to_q8_0(x: np.ndarray) -> np.ndarray:
    """d = max |x| / 127; halves are rounded away from zero."""
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    q = _divided(x, d)
    found = _made([("d", "<f2", 1), ("q", "i1", BLOCK)], len(x))
    found["d"], found["q"] = d[:, 0], np.trunc(q + np.copysign(np.float32(0.5), q))
    return found


def to_q4_0(x: np.ndarray) -> np.ndarray:
    """The number of the greatest size, with its sign, becomes -8."""
    greatest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = greatest / np.float32(-8)
    found = _made([("d", "<f2", 1), ("q", "u1", BLOCK // 2)], len(x))
    found["d"], found["q"] = d[:, 0], _nibbles(_divided(x, d) + np.float32(8.5))
    return found


def to_q4_1(x: np.ndarray) -> np.ndarray:
    """m = min x, d = (max x - m) / 15."""
    m = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - m) / np.float32(15)
    found = _made([("d", "<f2", 1), ("m", "<f2", 1), ("q", "u1", BLOCK // 2)], len(x))
    found["d"], found["m"], found["q"] = d[:, 0], m[:, 0], _nibbles(_divided(x - m, d) + np.float32(0.5))
    return found


def _nibbles(q: np.ndarray) -> np.ndarray:
    """The first half of a block in the lower halves of bytes, the second in the upper."""
    q = np.clip(q, 0, 15).astype(np.uint8)
    return q[:, : BLOCK // 2] | q[:, BLOCK // 2 :] << 4


ENCODE = {"q8_0": to_q8_0, "q4_0": to_q4_0, "q4_1": to_q4_1}
