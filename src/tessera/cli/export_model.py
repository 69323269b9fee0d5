"""`tessera export`: a model for other programs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tessera.cli.console import console

ADAPTER = "adapter"
NAMES = {
    "hf": "{name}-hf",
    "gguf": "{name}-{dtype}.gguf",
    "safetensors": "{name}.safetensors",
    ADAPTER: "{name}-adapter",
}
LOADERS = {
    "hf": "transformers: AutoModelForCausalLM.from_pretrained({path!r}); vLLM: vllm serve {path}",
    "gguf": "llama.cpp: llama-cli -m {path}; Ollama: a Modelfile with the line FROM {path}",
    ADAPTER: "peft: PeftModel.from_pretrained(base, {path!r})",
    "safetensors": "tessera: LM.load({path!r}); any other program: safetensors.safe_open",
}
USUAL = {"fp32": "f32", "fp16": "f16"}  # the types in the names of files


def export_model(
    run: Annotated[str, typer.Argument(help="A run, or any model that tessera generate opens.")],
    to: Annotated[str, typer.Option(help="hf (a folder), gguf, safetensors, or adapter: a run's alone, for peft.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="fp32, bf16 or fp16; for gguf also q8_0, q4_0 or q4_1, with smaller numbers. fp32 if not given, or "
            "for gguf the blocks that the run was quantized to."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to; a name made from the run's if not given.")] = None,
    step: Annotated[int | None, typer.Option(help="The checkpoint; the newest valid one if not given.")] = None,
) -> None:
    """Write a model for transformers, vLLM, llama.cpp and Ollama, with its tokenizer and its chat template."""
    from tessera import formats
    from tessera.errors import InputError, SettingError
    from tessera.formats.hub import model_name
    from tessera.formats.torch_tensors import FLOAT_TYPES
    from tessera.models import RunSource, open_any

    if to not in NAMES:
        raise SettingError("--to", to, ", ".join(NAMES))
    found = None if to == ADAPTER else open_any(run, step=step)
    stored = found.stored_as if isinstance(found, RunSource) and to == "gguf" else None
    dtype = dtype or stored or "fp32"
    out = out or Path(NAMES[to].format(name=model_name(run), dtype=USUAL.get(dtype, dtype)))
    if out.exists():
        raise InputError(f"{out} is there already: choose another --out")
    if found is None:
        _export_adapter(run, out, step)
        return
    if found.tokenizer is None:
        raise InputError(f"{run}: there is no tokenizer with the model, and other programs need one")
    shown = console()
    for line in found.notes:
        shown.print(f"note: {escape(line)}", style="dim")
    if isinstance(found, RunSource):
        tensors = found.tensors
    else:
        read_as = FLOAT_TYPES.get(dtype, FLOAT_TYPES["fp32"])
        tensors = {name: found.tensor(name, read_as) for name in found.names}
    blocks = found.blocks if dtype == stored else None  # the very codes
    lines = formats.export_model(
        found.settings, found.n_vocab, tensors, found.tokenizer, out, to=to, dtype=dtype, blocks=blocks
    )
    for line in lines:
        shown.print(escape(line))
    shown.print(f"wrote {escape(str(out))}\n{escape(LOADERS[to].format(path=str(out)))}")


def _export_adapter(run: str, out: Path, step: int | None) -> None:
    from tessera.adapt.peft_form import save_adapter
    from tessera.models import open_adapted

    model, settings, base = open_adapted(run, step=step)
    shown = console()
    for line in save_adapter(model, out, settings=settings, base=base):
        shown.print(escape(line))
    shown.print(f"wrote {escape(str(out))}\n{escape(LOADERS[ADAPTER].format(path=str(out)))}")
