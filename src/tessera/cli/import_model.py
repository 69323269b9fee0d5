"""`tessera import`: a run out of a model that someone else made."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tessera.cli.console import console, working


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face folder, a .gguf or .safetensors file, hf:OWNER/NAME or hf:OWNER/NAME@REVISION."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME if not given.")] = None,
    dtype: Annotated[str, typer.Option(help="The numbers in the run: fp32, bf16 or fp16.")] = "fp32",
) -> None:
    """Make a run out of a model from elsewhere: weights, tokenizer, chat template.

    Files that could run code (pickles, .bin, .pt) are refused. What was assumed or left out is said.
    """
    from tessera.errors import InputError
    from tessera.formats.hub import model_name
    from tessera.lm import LM, dtype_named
    from tessera.models import open_any
    from tessera.store.folder import check_free, is_run

    out = out or Path("runs") / model_name(source)
    wanted = dtype_named(dtype)
    if Path(source).is_dir() and is_run(Path(source)):
        raise InputError(f"{source} is a run already: tessera generate, chat and export take it as it is")
    check_free(out)
    found = open_any(source)
    if found.tokenizer is None:
        raise InputError(f"{source}: there is no tokenizer with the model, so no text can be given to it")
    shown = console()
    for line in found.notes:
        shown.print(f"note: {escape(line)}", style="dim")
    with working(shown, f"reading {escape(source)}"):
        lm = LM(found.build(wanted), found.tokenizer, found.settings)
    with working(shown, f"writing {escape(str(out))}"):
        lm.save(out, info={"made_by": "tessera import", "source": source, "family": found.family})
    framing = found.tokenizer.framing
    shown.print(f"family      {found.family}")
    shown.print(f"parameters  {lm.n_params:,} in {dtype}")
    shown.print(f"context     {found.settings.context:,} tokens")
    shown.print(f"vocabulary  {found.n_vocab:,} tokens")
    shown.print(f"chat        {'with its template' if framing.template else 'no template: it goes on from a text'}")
    shown.print(f"\nnext: tessera {'chat' if framing.template else 'generate'} {escape(str(out))}")
