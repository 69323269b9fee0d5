"""The table that a step works on, filled for a model: where its weights, cache and arrays lie."""

from functools import cache
from typing import Any

import numpy as np
from numba.core import types

from tessera.generate.cpu.angles import cosines_and_sines
from tessera.generate.cpu.asked import ROWS
from tessera.generate.cpu.attend import CHUNK, MOST
from tessera.generate.cpu.kernels import GROUP, GROUP_BLOCK, MULTIPLY
from tessera.generate.cpu.memory import large_memory, memory_by_need
from tessera.generate.cpu.panels import BLOCK, UNPACK
from tessera.generate.cpu.plan import Matrix, Norm, Row, Tile, Word
from tessera.generate.cpu.pool import CACHES, head_bytes
from tessera.generate.cpu.step import act
from tessera.generate.cpu.weights import Weights, matrix_names
from tessera.model.plain import PlainDecoder


class Table:
    """The words of a plan, and the arrays whose addresses are among them."""

    def __init__(
        self,
        model: PlainDecoder,
        weights: Weights,
        *,
        n_blocks: int,
        context: int,
        cache: str,
        n_threads: int,
    ) -> None:
        self.words = np.zeros(len(Word), np.int64)
        self.arrays: dict[Word, np.ndarray] = {}
        self.weights = weights
        self._set_shape(model, context, n_threads)
        self._set_weights(model, context)
        self._set_cache(cache, n_blocks)
        self._set_rows()

    @property
    def address(self) -> int:
        return int(self.words.ctypes.data)

    def set(self, **words: int) -> None:
        for name, value in words.items():
            self.words[Word[name]] = value

    def hold(self, place: Word, array: np.ndarray) -> np.ndarray:
        self.arrays[place] = array
        self.words[place] = array.ctypes.data
        return array

    def _set_float(self, place: Word, value: float) -> None:
        self.words.view(np.float32)[2 * place] = value

    def _set_shape(self, model: PlainDecoder, context: int, n_threads: int) -> None:
        settings, attention = model.settings, model.attention
        self.set(
            N_LAYERS=settings.n_layers,
            D_MODEL=settings.d_model,
            N_HEADS=attention.n_heads,
            N_KV_HEADS=attention.n_keys,
            D_HEAD=attention.d_head,
            N_CHUNKS=-(-context // CHUNK),
            N_THREADS=n_threads,
            ACT=address_of(act, 6),
        )
        self._set_float(Word.EPS, model.norm.eps)
        self._set_float(Word.QK_EPS, attention.qk_eps)
        self._set_float(Word.SCALE, attention.scale or attention.d_head**-0.5)
        self._set_float(Word.EMBEDDING_SCALE, settings.embedding_scale)

    def _set_weights(self, model: PlainDecoder, context: int) -> None:
        weights, names = self.weights, matrix_names(model)
        self.head = names[-1]
        names = names if self.head == "head.weight" else [*names, self.head]
        table = self.hold(Word.MATRICES, np.zeros((len(names), len(Matrix)), np.int64))
        self._biases = {name: _filled(bias) for name, bias in weights.vectors.items() if name.endswith(".bias")}
        for row, name in zip(table, names, strict=True):
            packed = weights.matrices[name]
            storage, n_blocks = packed.storage, packed.n_blocks
            bias = self._biases.get(name.removesuffix("weight") + "bias")
            row[Matrix.MULTIPLY] = address_of(MULTIPLY[storage.name], 11)
            row[Matrix.UNPACK] = address_of(UNPACK[storage.name], 5)
            row[Matrix.WEIGHTS] = weights.memory.ctypes.data + packed.start
            row[Matrix.N_PANELS], row[Matrix.N_BLOCKS] = packed.n_panels, n_blocks
            row[Matrix.S_SCALES], row[Matrix.S_PANEL] = storage.scales_bytes(n_blocks), storage.panel_bytes(n_blocks)
            row[Matrix.TAKES_BYTES] = storage.takes_bytes
            row[Matrix.BIAS] = 0 if bias is None else bias.ctypes.data
        self._set_norms(model.settings.n_layers)
        cos, sin = cosines_and_sines(model, context)
        self.hold(Word.COS, cos)
        self.hold(Word.SIN, sin)
        self.set(N_PAIRS=model.n_pairs, INTERLEAVED=int(model.position.layout == "interleaved"))

    def _set_norms(self, n_layers: int) -> None:
        """The weights of all norms; the final one as the first of a layer after the last."""
        vectors = self.weights.vectors
        self._norms = {name: _filled(vector) for name, vector in vectors.items() if "norm" in name}
        table = self.hold(Word.NORMS, np.zeros((n_layers + 1, len(Norm)), np.int64))
        places = {"attention_norm": Norm.ATTENTION, "feed_forward_norm": Norm.FEED_FORWARD}
        places |= {"attention.query_norm": Norm.QUERY, "attention.key_norm": Norm.KEY}
        for layer in range(n_layers):
            for name, place in places.items():
                found = self._norms.get(f"blocks.{layer}.{name}.weight")
                table[layer, place] = 0 if found is None else found.ctypes.data
        table[n_layers, Norm.ATTENTION] = self._norms["final_norm.weight"].ctypes.data

    def _set_cache(self, cache: str, n_blocks: int) -> None:
        n_heads = int(self.words[Word.N_LAYERS] * self.words[Word.N_KV_HEADS])
        size = head_bytes(cache, int(self.words[Word.D_HEAD]))
        for place in (Word.KEYS, Word.VALUES):
            self.hold(place, large_memory(n_blocks * n_heads * size))
        self.set(N_BLOCKS=n_blocks, S_BLOCK=n_heads * size, S_HEAD=size, NUMBER_BYTES=CACHES[cache])

    def _set_rows(self) -> None:
        """The arrays of a step."""
        n_heads, d_head = int(self.words[Word.N_HEADS]), int(self.words[Word.D_HEAD])
        n_blocks = {name: each.n_blocks for name, each in self.weights.matrices.items()}
        panels = [self.weights.matrices[f"blocks.0.attention.{name}.weight"].n_panels for name in ("query", "key")]
        width, mixed = BLOCK * n_blocks["blocks.0.feed_forward.gate.weight"], BLOCK * -(-n_heads * d_head // BLOCK)
        inner = BLOCK * n_blocks["blocks.0.feed_forward.output.weight"]
        qkv = 16 * (panels[0] + 2 * panels[1])
        for place, size in (
            (Word.X, width),
            (Word.NORMED, width),
            (Word.ADDED, width),
            (Word.QKV, qkv),
            (Word.MIXED, mixed),
            (Word.GATE, inner),
            (Word.INPUT, inner),
        ):
            self.hold(place, _aligned((ROWS, size), np.float32))
        rounded = max(width, mixed) // BLOCK * GROUP_BLOCK
        self.hold(Word.ROUNDED, _aligned((ROWS // GROUP, rounded), np.uint8))
        self.hold(Word.INNER_ROUNDED, _aligned((ROWS // GROUP, inner // BLOCK * GROUP_BLOCK), np.uint8))
        found = 4 * d_head + 128
        scratch = MOST * (2 * found + 4 * d_head + 4 * CHUNK)
        self.hold(Word.SCRATCH, _aligned((int(self.words[Word.N_THREADS]), scratch), np.uint8))
        self.hold(Word.FOUND, memory_by_need(GROUP * n_heads * int(self.words[Word.N_CHUNKS]) * found))
        for place, words in ((Word.ROWS, len(Row)), (Word.TILES, len(Tile)), (Word.WANTED, 1)):
            self.hold(place, np.zeros((ROWS, words), np.int64))
        self.set(
            KEY_AT=64 * panels[0],
            VALUE_AT=64 * (panels[0] + panels[1]),
            S_X=4 * width,
            S_QKV=4 * qkv,
            S_MIXED=4 * mixed,
            S_INNER=4 * inner,
            S_ROUNDED=rounded,
            S_INNER_ROUNDED=inner // BLOCK * GROUP_BLOCK,
            S_LOGITS=64 * self.weights.matrices[self.head].n_panels,
            S_SCRATCH=scratch,
            S_FOUND=found,
        )


@cache
def address_of(function: Any, n_arguments: int) -> int:
    """Where the machine code of a compiled function of whole numbers begins."""
    kinds = (types.int64,) * n_arguments
    function.compile(kinds)
    found = function.overloads[kinds]
    return int(found.library.get_pointer_to_function(found.fndesc.llvm_cfunc_wrapper_name))


def _aligned(shape: tuple[int, int], kind: Any) -> np.ndarray:
    """Zeros that begin with a cache line, so that no vector lies in two."""
    n_bytes = shape[0] * shape[1] * np.dtype(kind).itemsize
    memory = np.zeros(n_bytes + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + n_bytes].view(kind).reshape(shape)


def _filled(vector: np.ndarray) -> np.ndarray:
    """Filled up with zeros to whole blocks."""
    made = _aligned((1, -(-len(vector) // BLOCK) * BLOCK), np.float32)[0]
    made[: len(vector)] = vector
    return made
