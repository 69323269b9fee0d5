"""What the kernels compute, written once more in NumPy from the formulas: the same roundings in the same order.

A sum with one rounding (fma) is made in float64, where the product of two float32 is exact. Slow, and for any decoder
that the CPU engine takes. Rows T, width D, heads H, their width K.
"""

import numpy as np
import torch

from tessera.formats.gguf.blocks import KINDS, dequantize, quantize
from tessera.model.decoder import Decoder

F32 = np.float32


def fma(a, b, c):  # type: ignore[no-untyped-def]
    return (np.float64(a) * np.float64(b) + np.float64(c)).astype(F32)


def halves_onto_halves(x: np.ndarray) -> np.ndarray:
    """The sum of 16 lanes."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def exponential(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, F32(-87), F32(88))
    rounder = F32(1.5 * 2**23)
    n = (x * F32(1.4426950408889634) + rounder) - rounder
    r = fma(n, F32(2.12194440e-4), fma(n, F32(-0.693359375), x))
    series = np.full_like(r, F32(1 / 720))
    for term in (120, 24, 6, 2, 1, 1):
        series = fma(series, r, F32(1 / term))
    return np.ldexp(series, n.astype(np.int32))


def filled(x: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % multiple)])


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    lanes = filled(x, 16).reshape(*x.shape[:-1], -1, 16)
    total = np.zeros_like(lanes[..., 0, :])
    for i in range(lanes.shape[-2]):
        total = fma(lanes[..., i, :], lanes[..., i, :], total)
    scale = F32(1) / np.sqrt(halves_onto_halves(total) / F32(x.shape[-1]) + F32(eps))
    return x * scale[..., None] * weight


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 32 as (T, blocks, 32) whole numbers, and their scales (T, blocks)."""
    blocks = x.reshape(len(x), -1, 32)
    size = np.abs(blocks).max(axis=-1)
    up = np.divide(F32(127), size, out=np.zeros_like(size), where=size >= F32(2.0**-100))
    scale = np.where(size >= F32(2.0**-100), size / F32(127), F32(0))
    return np.rint(blocks * up[..., None]).astype(np.int64), scale


def kept(x_THK: np.ndarray, cache: str) -> tuple[np.ndarray, np.ndarray]:
    """What the cache gives back, and the scale of each head, (T, H)."""
    if cache != "int8":
        return x_THK.astype(np.float16 if cache == "fp16" else F32).astype(F32), np.ones(x_THK.shape[:2], F32)
    scale = (np.abs(x_THK).max(axis=-1) / F32(127)).astype(np.float16).astype(F32)
    up = np.divide(F32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.rint(x_THK * up[..., None]), scale


class Map:
    """A weight in a storage, and its product with rows."""

    def __init__(self, weight: np.ndarray, storage: str) -> None:
        self.storage, self.n_rows = storage, len(weight)
        self.numbers = filled(weight, 32)
        if storage == "bf16":
            self.numbers = torch.from_numpy(self.numbers).bfloat16().float().numpy()
        if storage in ("q8_0", "q4_0", "q4_1"):
            kind = KINDS[storage]
            made = quantize(kind, self.numbers.ravel())
            self.numbers = dequantize(kind, made.tobytes()).reshape(self.numbers.shape)
            blocks = made.reshape(self.n_rows, -1, kind.size)
            self.scale = blocks[..., :2].copy().view("<f2")[..., 0].astype(F32)
            if storage == "q8_0":
                self.q = blocks[..., 2:].copy().view(np.int8).astype(np.int64)
            else:
                self.offset = blocks[..., 2:4].copy().view("<f2")[..., 0].astype(F32)
                nibbles = blocks[..., kind.size - 16 :]
                self.q = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).astype(np.int64)
                self.q -= 8 if storage == "q4_0" else 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = filled(x, 32)
        if self.storage in ("fp32", "bf16"):
            total = np.zeros((len(x), self.n_rows), F32)
            for column in range(x.shape[1]):
                total = fma(x[:, column, None], self.numbers[None, :, column], total)
            return total
        x8, scales = rounded(x)
        total = np.zeros((len(x), self.n_rows), F32)
        for block in range(x8.shape[1]):
            found = x8[:, block] @ self.q[:, block].T
            total = fma(found, self.scale[None, :, block] * scales[:, block, None], total)
            if self.storage == "q4_1":
                offset = scales[:, block] * x8[:, block].sum(axis=-1).astype(F32)
                total = fma(self.offset[None, :, block], offset[:, None], total)
        return total


class Reference:
    """A decoder's logits for one sequence, the cache in single or half precision or in 8 bits; `angles` are the tables
    of cosines and sines that the kernels read."""

    def __init__(self, model: Decoder, storage: str, cache: str, angles: tuple[np.ndarray, np.ndarray]) -> None:
        self.model, self.cache, self.angles = model, cache, angles
        self.tensors = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
        outer = "q8_0" if storage in ("q4_0", "q4_1") else storage
        self.maps = {
            name: Map(tensor, storage if name.startswith("blocks.") else outer)
            for name, tensor in self.tensors.items()
            if tensor.ndim == 2
        }

    def numpy(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def product(self, name: str, x: np.ndarray) -> np.ndarray:
        y = self.maps[f"{name}.weight"](x)
        return y + self.numpy(f"{name}.bias") if f"{name}.bias" in self.tensors else y

    def rotated(self, x_THK: np.ndarray) -> np.ndarray:
        cos, sin = (table[: len(x_THK), None] for table in self.angles)
        C = cos.shape[-1]
        a, b = x_THK[..., :C], x_THK[..., C : 2 * C]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, x_THK[..., 2 * C :]], axis=-1)

    def attention(self, layer: str, x: np.ndarray) -> np.ndarray:
        attention = self.model.get_submodule(f"{layer}attention")
        K, H, G = attention.d_head, attention.n_heads, attention.n_kv_heads
        q, k, v = (
            self.product(f"{layer}attention.{name}", x).reshape(len(x), heads, K)
            for name, heads in (("query", H), ("key", G), ("value", G))
        )
        if f"{layer}attention.query_norm.weight" in self.tensors:
            q = norm(q, self.numpy(f"{layer}attention.query_norm.weight"), attention.query_norm.eps)
            k = norm(k, self.numpy(f"{layer}attention.key_norm.weight"), attention.key_norm.eps)
        (k, k_scale), (v, v_scale) = (kept(each, self.cache) for each in (self.rotated(k), v))
        q = self.rotated(q) * F32(attention.scale or K**-0.5)
        mixed = np.zeros((len(x), H, K), F32)
        for t in range(len(x)):
            for h in range(H):
                of_head = (each[: t + 1, h * G // H] for each in (k, k_scale, v, v_scale))
                mixed[t, h] = self.attend(q[t, h], *of_head)
        return self.product(f"{layer}attention.output", mixed.reshape(len(x), -1))

    def attend(
        self, q_K: np.ndarray, k_SK: np.ndarray, k_scale_S: np.ndarray, v_SK: np.ndarray, v_scale_S: np.ndarray
    ) -> np.ndarray:
        scores = np.zeros(len(k_SK), F32)
        for i, number in enumerate(q_K):
            scores = fma(number, k_SK[:, i], scores)
        scores = scores * k_scale_S
        weights = exponential(scores - scores.max())
        lanes = np.zeros(16, F32)
        for block in filled(weights, 16).reshape(-1, 16):
            lanes = lanes + block
        total = np.zeros_like(q_K)
        for weight, value_K in zip(weights * v_scale_S, v_SK, strict=True):
            total = fma(weight, value_K, total)
        return total * (F32(1) / halves_onto_halves(lanes))

    def logits(self, ids: list[int]) -> np.ndarray:
        x = self.maps["embedding.weight"].numbers[ids][:, : self.tensors["embedding.weight"].shape[1]]
        x = x * F32(self.model.embedding_scale)
        for number, block in enumerate(self.model.blocks):
            layer = f"blocks.{number}."
            normed = norm(x, self.numpy(f"{layer}attention_norm.weight"), block.attention_norm.eps)
            x = x + self.attention(layer, normed)
            normed = norm(x, self.numpy(f"{layer}feed_forward_norm.weight"), block.feed_forward_norm.eps)
            gate = self.product(f"{layer}feed_forward.gate", normed)
            gated = gate / (F32(1) + exponential(-gate)) * self.product(f"{layer}feed_forward.input", normed)
            x = x + self.product(f"{layer}feed_forward.output", gated)
        head = "embedding" if self.model.head is None else "head"
        return self.product(head, norm(x, self.numpy("final_norm.weight"), self.model.final_norm.eps))
