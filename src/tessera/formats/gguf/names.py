"""Names and forms of tensors in GGUF files, as links to ours.

Most differ by name only. llama.cpp turns neighbouring rows of queries and keys in some architectures (llama) and rows
that lie half a head apart in others; ours say in their settings which they turn, so whole rows change places on the
way. GPT-2's queries, keys and values are one matrix, as are DeepSeek's latent and rotated key; its maps from the latent
have a dimension for the heads.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tessera.errors import SettingError
from tessera.formats.families.links import Array, Joined, JoinedByHead, Link, Read

Shapes = Mapping[str, tuple[int, ...]]

_ONCE = {"embedding": "token_embd", "positions.0": "position_embd", "final_norm": "output_norm", "head": "output"}
_EACH = {
    "attention_norm": "attn_norm",
    "attention_post_norm": "post_attention_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "attention.query_latent": "attn_q_a",
    "attention.query_latent_norm": "attn_q_a_norm",
    "attention.latent_norm": "attn_kv_a_norm",
    "feed_forward_norm": "ffn_norm",
    "feed_forward_post_norm": "post_ffw_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.input": "ffn_up",
    "feed_forward.output": "ffn_down",
    "feed_forward.router": "ffn_gate_inp",
    "feed_forward.experts.gate": "ffn_gate_exps",
    "feed_forward.experts.input": "ffn_up_exps",
    "feed_forward.experts.output": "ffn_down_exps",
    "feed_forward.shared.gate": "ffn_gate_shexp",
    "feed_forward.shared.input": "ffn_up_shexp",
    "feed_forward.shared.output": "ffn_down_shexp",
}


@dataclass(frozen=True)
class Regrouped(Link):
    """Rows of heads that are turned in pairs: two neighbours on one side, half a head apart on the other."""

    n_heads: int
    pairs_in_file: bool

    def take(self, which: int, read: Read) -> Array:
        return self._moved(read(self.theirs[0]), apart=self.pairs_in_file)

    def give(self, ours: Sequence[Array]) -> list[Array]:
        return [self._moved(ours[0], apart=not self.pairs_in_file)]

    def _moved(self, rows: Array, *, apart: bool) -> Array:
        pairs = len(rows) // self.n_heads // 2
        parts = (self.n_heads, pairs, 2) if apart else (self.n_heads, 2, pairs)
        return rows.reshape(*parts, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@dataclass(frozen=True)
class ByHead(Link):
    """A map from the latent, (H K, L) here: (H, K, L) in the file, or (H, L, K) where `turned`."""

    n_heads: int
    turned: bool

    def their_shapes(self) -> list[tuple[int, ...]]:
        rows, width = self.shapes[0]
        d_head = rows // self.n_heads
        return [(self.n_heads, width, d_head) if self.turned else (self.n_heads, d_head, width)]

    def take(self, which: int, read: Read) -> Array:
        found_HKL = read(self.theirs[0])
        return (found_HKL.swapaxes(1, 2) if self.turned else found_HKL).reshape(self.shapes[0])

    def give(self, ours: Sequence[Array]) -> list[Array]:
        rows_HKL = ours[0].reshape(self.n_heads, -1, ours[0].shape[1])
        return [rows_HKL.swapaxes(1, 2) if self.turned else rows_HKL]


@dataclass(frozen=True)
class Naming:
    """How an architecture names its tensors.

    pairs: whether its files hold queries and keys with the pairs of the rotation side by side; None: nothing is moved.
    joined: whether queries, keys and values are one matrix.
    """

    pairs: bool | None = None
    joined: bool = False

    def links(
        self,
        shapes: Shapes,
        *,
        n_heads: int,
        n_kv_heads: int,
        interleaved: Collection[int] = (),
        held: Collection[str] = (),
    ) -> list[Link]:
        """Links for all of our tensors, whose shapes these are. `interleaved`: the layers that turn neighbours here;
        `held`: the names in the file, where it is there."""
        found: list[Link] = []
        heads = {"attention.query": n_heads, "attention.key": n_kv_heads}
        heads |= {"attention.query_norm": 1, "attention.key_norm": 1}
        for name, shape in shapes.items():
            if name == "embedding.weight" or not name.startswith("blocks."):
                found.append(_plain(name, shape))
                continue
            _, layer, rest = name.split(".", 2)
            module, _, leaf = rest.rpartition(".")
            begin, place = f"blocks.{layer}.", f"blk.{layer}."
            if self.joined and module in _JOINED and f"{begin}attention.key.{leaf}" in shapes:
                if module == "attention.query":
                    found.append(_joined(shapes, begin, ("query", "key", "value"), f"{place}attn_qkv.{leaf}", leaf))
            elif f"{begin}attention.latent.weight" in shapes and module in _LATENT:
                found += _latent(shapes, begin, place, module, leaf, n_heads, held)
            elif module in heads and self.pairs is not None and self.pairs != (int(layer) in interleaved):
                theirs = f"{place}{_EACH[module]}.{leaf}"
                found.append(Regrouped((name,), (theirs,), (shape,), heads[module], self.pairs))
            elif rest == "feed_forward.router_bias":
                found.append(Link((name,), (f"{place}exp_probs_b.bias",), (shape,)))
            else:
                found.append(_plain(name, shape))
        return found


_JOINED = ("attention.query", "attention.key", "attention.value")
_LATENT = {f"attention.{part}" for part in ("query", "latent", "rotated_key", "key_up", "value_up")}


def _plain(name: str, shape: tuple[int, ...]) -> Link:
    module, _, leaf = name.rpartition(".")
    if name.startswith("blocks."):
        _, layer, rest = module.split(".", 2) if module.count(".") > 1 else ("", "", "")
        theirs = f"blk.{layer}.{_EACH[rest]}" if rest in _EACH else None
    else:
        theirs = _ONCE.get(module)
    if theirs is None:
        raise SettingError("tensor", name, "one that an architecture of GGUF files has")
    return Link((name,), (f"{theirs}.{leaf}",), (shape,))


def _joined(shapes: Shapes, begin: str, parts: tuple[str, ...], theirs: str, leaf: str) -> Joined:
    ours = tuple(f"{begin}attention.{part}.{leaf}" for part in parts)
    return Joined(ours, (theirs,), tuple(shapes[name] for name in ours))


def _latent(
    shapes: Shapes, begin: str, place: str, module: str, leaf: str, n_heads: int, held: Collection[str]
) -> Iterator[Link]:
    """DeepSeek's: older files have both maps from the latent in one matrix, head by head."""
    name = f"{begin}{module}.{leaf}"
    here = (name,), (shapes[name],)
    if module == "attention.query":
        straight = f"{begin}attention.query_latent.weight" not in shapes
        yield Link(here[0], (f"{place}attn_q{'' if straight else '_b'}.{leaf}",), here[1])
    elif module == "attention.latent":
        yield _joined(shapes, begin, ("latent", "rotated_key"), f"{place}attn_kv_a_mqa.{leaf}", leaf)
    elif f"{place}attn_kv_b.weight" in held:
        if module == "attention.key_up":
            both = (name, f"{begin}attention.value_up.{leaf}")
            yield JoinedByHead(both, (f"{place}attn_kv_b.{leaf}",), (shapes[both[0]], shapes[both[1]]), n_heads)
    elif module == "attention.key_up":
        yield ByHead(here[0], (f"{place}attn_k_b.{leaf}",), here[1], n_heads, turned=True)
    elif module == "attention.value_up":
        yield ByHead(here[0], (f"{place}attn_v_b.{leaf}",), here[1], n_heads, turned=False)
