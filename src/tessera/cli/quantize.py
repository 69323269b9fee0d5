"""`tessera quantize`: a run whose weights are in 4 or 8 bits, and what that costs."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from tessera.cli.console import console, size, working

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tessera.data.batch import Batch
    from tessera.lm import LM

LENGTH = 512
"""Tokens of a window, where the context allows it."""
HELD_SHARE = 5
"""One part in so many of the calibration text is kept for the measurement."""
BATCH_SIZE = 4


def quantize(
    run: Annotated[str, typer.Argument(help="A run, a Hugging Face folder, a GGUF file, or hf:OWNER/NAME.")],
    to: Annotated[str, typer.Option(help="int8, int4, or the blocks of GGUF files: q8_0, q4_0, q4_1.")],
    method: Annotated[
        str, typer.Option(help="rtn (to the nearest level), or gptq or awq, which need a text and lose less.")
    ] = "rtn",
    out: Annotated[Path | None, typer.Option(help="The new run's folder; runs/NAME-TO if not given.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="A text to calibrate on; what the run held out if not given.")
    ] = None,
    measure: Annotated[
        Path | None, typer.Option(help="A text to measure on; the last fifth of the other if not given.")
    ] = None,
    group: Annotated[
        int | None, typer.Option(help="For int8 and int4: columns that share a scale, 32, 64 or 128; 0 for a row.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Windows of 512 tokens to calibrate on.")] = 64,
    measure_tokens: Annotated[int, typer.Option(help="The most tokens to measure on.")] = 20_000,
    act_order: Annotated[bool, typer.Option(help="gptq: the columns that matter most first.")] = False,
    step: Annotated[int | None, typer.Option(help="The checkpoint; the newest valid one if not given.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu or cuda.")] = "cpu",
) -> None:
    """Store a model's weights in 4 or 8 bits, and say what it loses in perplexity."""
    from tessera.errors import SettingError
    from tessera.formats.hub import model_name
    from tessera.generate.quantize import Quantization, quantize_model, stored_tensors
    from tessera.lm import LM
    from tessera.store.folder import check_free

    plan = Quantization(to=to, method=method, group=group, act_order=act_order)
    for name, value in (("--samples", samples), ("--measure-tokens", measure_tokens)):
        if value < 1:
            raise SettingError(name, value, "at least 1")
    out = out or Path("runs") / f"{model_name(run)}-{to}"
    check_free(out)
    shown = console()
    lm = LM.load(run, step=step, device=device, say=lambda line: shown.print(f"note: {escape(line)}", style="dim"))
    rows, held = _texts(run, lm, text, measure, samples, measure_tokens)
    bytes_before = sum(tensor.numel() * tensor.itemsize for tensor in stored_tensors(lm.model).values())
    with working(shown, f"measuring on {len(held) - 1:,} tokens"):
        before = _perplexity(lm, held)
    with working(shown, f"to {to} by {method}"):
        notes = quantize_model(lm.model, plan, rows_BT=None if rows is None else rows.to(device))
    with working(shown, "measuring again"):
        after = _perplexity(lm, held)
    for line in notes:
        shown.print(f"note: {escape(line)}", style="dim")
    lm.save(out, info={"made_by": "tessera quantize", "source": run, "quantized": f"{to} by {method}"})
    bytes_after = sum(tensor.numel() * tensor.itemsize for tensor in stored_tensors(lm.model).values())
    shown.print(f"perplexity  {before:.4f} before, {after:.4f} after ({after / before - 1:+.2%})")
    shown.print(f"size        {size(bytes_before)} before, {size(bytes_after)} after")
    shown.print(f"wrote {escape(str(out))}")
    shown.print(f"\nnext: tessera generate {escape(str(out))}")


def _texts(
    run: str, lm: "LM", text: Path | None, measure: Path | None, samples: int, most: int
) -> "tuple[torch.Tensor | None, np.ndarray]":
    """Rows to calibrate on, where there is a text for it, and the ids to measure on."""
    import torch

    from tessera.errors import InputError

    length = min(LENGTH, lm.settings.context)
    if measure is not None and text is None and not _held_out_is_there(run):
        return None, _read(lm, measure)[: most + 1]
    ids = _read(lm, text) if text is not None else _held_out(run, lm)
    held = _read(lm, measure) if measure is not None else ids[len(ids) - len(ids) // HELD_SHARE :]
    ids = ids if measure is not None else ids[: len(ids) - len(ids) // HELD_SHARE]
    n_rows = min(samples, len(ids) // length)
    if not n_rows or len(held) < 2:
        raise InputError(f"the text has {len(ids):,} tokens to calibrate on: at least {length} are needed (--text)")
    rows = torch.tensor(ids[: n_rows * length].tolist()).view(n_rows, length)
    return rows, held[: most + 1]


def _read(lm: "LM", path: Path) -> "np.ndarray":
    """The ids of a text file."""
    import numpy as np

    from tessera.errors import InputError

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    ids = lm.tokenizer.encode(path.read_text(encoding="utf-8"), specials="none")
    if len(ids) < 2:
        raise InputError(f"{path}: {len(ids)} tokens are too few to say anything")
    return np.asarray(ids)


def _held_out_is_there(run: str) -> bool:
    from tessera.models import holds_run
    from tessera.store.run import Run

    path = Path(run)
    if not path.exists() or not holds_run(path):
        return False
    with Run.open(path) as opened:
        return "data" in opened.recipe and "data" in opened.info


def _held_out(run: str, lm: "LM") -> "np.ndarray":
    """What a run has held out of its own text."""
    from tessera.config import check
    from tessera.corpus import reopen_data
    from tessera.errors import InputError
    from tessera.recipe import Recipe
    from tessera.store.run import Run

    if not _held_out_is_there(run):
        raise InputError(f"{run}: there is no held-out text with the model; give one with --text FILE")
    with Run.open(Path(run)) as opened:
        recipe = check(Recipe, opened.recipe)
        if recipe.reads != "documents":
            raise InputError(f"{run}: it has learned from examples, not from a text; give one with --text FILE")
        return reopen_data(recipe, opened, lm.tokenizer).validation.tokens[:]


def _perplexity(lm: "LM", ids: "np.ndarray") -> float:
    from tessera.evaluate.loss import held_out_loss, perplexity

    return perplexity(held_out_loss(lm.model, _batches(ids, min(LENGTH, lm.settings.context))).mean)


def _batches(ids: "np.ndarray", length: int) -> "Iterator[Batch]":
    """Windows side by side: each token but the first of all is predicted once, from those before it in its window."""
    import numpy as np

    from tessera.data.batch import windows

    starts = np.arange(0, len(ids) - 1, length)
    for i in range(0, len(starts), BATCH_SIZE):
        yield windows(ids, starts[i : i + BATCH_SIZE], length)
