"""A model's weights into codes: layer by layer, to the nearest level, by GPTQ or by AWQ.

Linear maps and experts go to the kind that is asked for. To 8 bits go those where an error costs most:

    the tables                        embedding and head
    what several heads read           the values of grouped-query attention, the latent: small maps
    the first and the last block's    of many blocks: their feed-forward layers, which all of the others build upon, or
                                      after which none can make up for anything
    what gets massive activations     where the text shows them: in a few layers a few tokens, such as the first, are
                                      hundreds of times larger than all others, and all tokens attend to them (Sun et
                                      al. 2024, "Massive Activations in Large Language Models").

Norms, biases, routers and tables of positions stay as they are.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tessera.errors import InputError, SettingError
from tessera.generate.quantize.awq import fold_scale, folds_of, mixes_values
from tessera.generate.quantize.calibrate import Moments, Walk, Watch, layers_of
from tessera.generate.quantize.gptq import gptq
from tessera.generate.quantize.kinds import KINDS, Grid, Kind, check_finite, fits, group_for
from tessera.generate.quantize.refine import refine
from tessera.generate.quantize.rounding import lay_grid, nearest
from tessera.generate.quantize.stored import (
    QuantizedEmbedding,
    QuantizedExpertLinear,
    QuantizedLinear,
    QuantizedWeight,
)
from tessera.model.attention import GroupedQueryAttention
from tessera.model.decoder import Decoder
from tessera.model.embedding import TableEmbedding
from tessera.model.latent_attention import MultiHeadLatentAttention
from tessera.model.linear import ExpertLinear, Linear

Say = Callable[[str], None]
GROUPS = (32, 64, 128)
MANY = 24
"""Blocks of which two are little."""


@dataclass(frozen=True)
class Quantization:
    """How a model is quantized. `group` is for int8 and int4: 32, 64 or 128 columns, 0 for whole rows; None: as usual
    for the kind. `act_order` and `damping` are GPTQ's."""

    to: str
    method: str = "rtn"
    group: int | None = None
    act_order: bool = False
    damping: float = 0.1

    def __post_init__(self) -> None:
        if self.to not in KINDS:
            raise SettingError.unknown("to", self.to, KINDS)
        if self.method not in METHODS:
            raise SettingError.unknown("method", self.method, METHODS)
        if self.group is not None and KINDS[self.to].is_block:
            raise SettingError("group", self.group, f"none: {self.to} has groups of 32")
        if self.group is not None and self.group not in (0, *GROUPS):
            raise SettingError("group", self.group, "32, 64 or 128, or 0 for a whole row")
        if not self.damping > 0:
            raise SettingError("damping", self.damping, "a number above 0")

    @property
    def kind(self) -> Kind:
        return KINDS[self.to]

    @property
    def wanted(self) -> int | None:
        """Columns in a group; None for a whole row."""
        return self.kind.usual_group if self.group is None else self.group or None


@dataclass
class _Work:
    """What all steps share."""

    plan: Quantization
    model: Decoder
    left: list[str] = field(default_factory=list)
    """Maps that stay floats."""
    fine: Counter[str] = field(default_factory=Counter)
    """Maps that have 8 bits among others of 4, by their names in a block."""

    def round(
        self,
        path: str,
        block: nn.Module,
        layer: Any,
        moments: Moments | None,
        squares: Sequence[Tensor] | None = None,
    ) -> QuantizedWeight | None:
        """Put the layer at `path` of a block into codes; with moments as the method says, else to the nearest.

        `squares`: the mean squares of its inputs, where factors have changed them.
        """
        weight = layer.weight.detach()
        kind, wanted = self._kind_of(path, block, moments)
        width = weight.shape[-1]
        if not fits(kind, width):
            self.left.append(path)
            return None
        group = group_for(kind, width, wanted)
        self.fine[path] += kind is not self.plan.kind
        made = []
        for i, w_RD in enumerate(weight.float().view(-1, *weight.shape[-2:]).unbind()):
            check_finite(path, w_RD, lay_grid(kind, w_RD, group))
            if moments is None or not moments.n[i]:
                made.append(nearest(kind, w_RD, group))
            elif squares is not None:
                made.append(nearest(kind, w_RD, group, weight_D=squares[i]))
            else:
                made.append(self._by_hessian(kind, w_RD, moments.hessians[i], group))
        codes = torch.cat([codes for codes, _ in made])
        stored = QuantizedWeight.of(kind.name, weight.shape, codes, _stacked([grid for _, grid in made]))
        put_layer(block, path, layer, stored)
        return stored

    def _kind_of(self, path: str, block: Any, moments: Moments | None) -> tuple[Kind, int | None]:
        """(the kind of a map, the size of its groups)."""
        kind, attention = self.plan.kind, block.attention
        shared = {
            "attention.latent": isinstance(attention, MultiHeadLatentAttention),
            "attention.value": isinstance(attention, GroupedQueryAttention)
            and attention.n_kv_heads < attention.n_heads,
        }
        blocks = self.model.blocks
        is_end = len(blocks) >= MANY and block in (blocks[0], blocks[-1]) and path.startswith("feed_forward.")
        if not (is_end or shared.get(path) or (moments is not None and moments.is_massive)):
            return kind, self.plan.wanted
        fine = KINDS[kind.fine]
        return fine, self.plan.wanted if fine is kind else fine.usual_group

    def _by_hessian(self, kind: Kind, w_RD: Tensor, hessian_DD: Tensor, group: int) -> tuple[Tensor, Grid]:
        damping = self.plan.damping
        codes_RD, grid = gptq(kind, w_RD, hessian_DD, group, damping=damping, act_order=self.plan.act_order)
        return refine(kind, w_RD, codes_RD, grid, hessian_DD, damping=damping)


def _by_nearest(work: _Work, walk: Walk | None, number: int) -> None:
    block = work.model.blocks[number]
    for path, layer in layers_of(block).items():
        work.round(path, block, layer, None)


def _by_gptq(work: _Work, walk: Walk | None, number: int) -> None:
    """Each map when its input arrives: what it reads was made by those before it as they are by then. One pass of the
    whole text through the block does all."""
    assert walk is not None
    block, layers = work.model.blocks[number], layers_of(work.model.blocks[number])
    left = dict(layers)

    def quantize(path: str, moments: Moments) -> None:
        layer: Any = left.pop(path, None)
        if layer is not None and (stored := work.round(path, block, layer, moments)) is not None:
            layer.weight.data = stored.whole(layer.weight.dtype)  # the call that is under way goes on with it

    made_BTD = walk.run(number, Watch(quantize), layers)
    for path, layer in left.items():  # nothing called it
        work.round(path, block, layer, None)
    walk.x_BTD = made_BTD


def _by_awq(work: _Work, walk: Walk | None, number: int) -> None:
    """All maps by what they are given before any is rounded; then the text goes on through the block as it is."""
    assert walk is not None
    block, layers = work.model.blocks[number], layers_of(work.model.blocks[number])
    watch = Watch()
    walk.run(number, watch, layers)
    folds = [fold for fold in folds_of(block) if set(fold.readers) <= set(watch.moments)]
    if mixes_values(list(work.model.blocks)):
        folds = [fold for fold in folds if fold.maker != "attention.value"]
    squares = {path: [h_DD.diagonal() for h_DD in each.hessians] for path, each in watch.moments.items()}
    for fold in folds:
        scale_D = fold_scale(block, fold, watch.moments[fold.readers[0]], work.plan.kind, work.plan.wanted)
        for path in fold.readers:
            squares[path] = [squares[path][0] / scale_D.square()]
    for path, layer in layers.items():
        work.round(path, block, layer, watch.moments.get(path), squares.get(path))
    walk.x_BTD = walk.run(number)


METHODS: dict[str, Callable[[_Work, Walk | None, int], None]] = {"rtn": _by_nearest, "gptq": _by_gptq, "awq": _by_awq}


@torch.no_grad()
def quantize_model(
    model: Decoder, plan: Quantization, *, rows_BT: Tensor | None = None, say: Say = lambda line: None
) -> list[str]:
    """Put the weights of `model` into codes, in their place; returns what is to be said of it.

    GPTQ and AWQ need `rows_BT`, rows of a text's tokens. The blocks that predict further tokens are left as they are.
    """
    if plan.method != "rtn" and rows_BT is None:
        raise SettingError("text", None, f"a text to calibrate on, as {plan.method} needs one")
    if not any(layers_of(block) for block in model.blocks):
        raise InputError("there is nothing to quantize: the model's blocks have no linear map of floats")
    model.eval().requires_grad_(False)
    work = _Work(plan, model)
    walk = None if plan.method == "rtn" or rows_BT is None else Walk(model, rows_BT)
    for number in range(len(model.blocks)):
        METHODS[plan.method](work, walk, number)
        say(f"block {number + 1} of {len(model.blocks)}")
    _quantize_tables(work)
    return _notes(work)


def _notes(work: _Work) -> list[str]:
    notes = []
    if work.fine.total():
        counted = ", ".join(f"{n} {path}" for path, n in work.fine.items() if n)
        notes.append(f"{work.fine.total()} maps have 8 bits, as they cost most in 4: {counted}")
    if work.left:
        notes.append(f"{len(work.left)} maps, such as {work.left[0]}, stay floats: their rows are no multiple of 32")
    return notes


def _quantize_tables(work: _Work) -> None:
    """The embedding (where it is a plain table) and the head."""
    model, kind = work.model, KINDS[work.plan.kind.fine]
    for path in ("embedding", "head"):
        part: Any = getattr(model, path)
        if part is None or not fits(kind, part.weight.shape[1]):
            continue
        if type(part) not in (TableEmbedding, Linear):
            continue
        weight = part.weight.detach()
        group = group_for(kind, weight.shape[1], kind.usual_group)
        codes, grid = nearest(kind, weight.float(), group)
        check_finite(f"{path}.weight", weight, grid)
        stored = QuantizedWeight.of(kind.name, weight.shape, codes, grid)
        put_layer(model, path, part, stored)


def put_layer(
    parent: nn.Module, path: str, layer: Any, stored: QuantizedWeight, dtype: torch.dtype | None = None
) -> None:
    """Let the layer at `path` keep its weight as `stored`. `dtype`: of the rows of a table, where not as it was."""
    if tuple(layer.weight.shape) != stored.shape:
        raise SettingError(f"{path}.weight", stored.shape, f"the shape {tuple(layer.weight.shape)}")
    made: nn.Module
    if isinstance(layer, ExpertLinear):
        made = QuantizedExpertLinear(stored=stored)
    elif isinstance(layer, TableEmbedding):
        made = QuantizedEmbedding(stored=stored, dtype=dtype or layer.weight.dtype)
    else:
        made = QuantizedLinear(stored=stored, bias=layer.bias)
    owner, _, name = path.rpartition(".")
    setattr(parent.get_submodule(owner), name, made.eval())


def _stacked(grids: list[Grid]) -> Grid:
    offsets = [grid.offset_RG for grid in grids if grid.offset_RG is not None]
    return Grid(torch.cat([grid.scale_RG for grid in grids]), torch.cat(offsets) if offsets else None)
