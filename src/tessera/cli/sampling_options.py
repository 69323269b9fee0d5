"""What `generate` and `chat` share: the options of how an answer is chosen and what computes it, and a quick start."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from tessera.lm import LM

_SAMPLING, _PENALTIES, _ENGINE = "How tokens are chosen", "What is avoided", "What computes"

MaxTokens = Annotated[int, typer.Option(help="The most tokens in an answer.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.")]
Stop = Annotated[list[str] | None, typer.Option(help="A text that ends the answer; may be repeated.")]
Temperature = Annotated[
    float,
    typer.Option(
        help="Below 1 is bolder, above 1 more varied, 0 always the likeliest token.", rich_help_panel=_SAMPLING
    ),
]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.", rich_help_panel=_SAMPLING)]
TopP = Annotated[
    float | None,
    typer.Option(help="Draw from the fewest tokens that hold this share.", rich_help_panel=_SAMPLING),
]
MinP = Annotated[
    float | None,
    typer.Option(help="Draw from tokens at least this share as likely as the likeliest.", rich_help_panel=_SAMPLING),
]
Typical = Annotated[
    float | None,
    typer.Option(help="Draw from the fewest tokens of usual surprise that hold this share.", rich_help_panel=_SAMPLING),
]
Mirostat = Annotated[
    float | None,
    typer.Option(help="Keep the surprise near so many bits a token; replaces the filters.", rich_help_panel=_SAMPLING),
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1 avoids tokens that have occurred.", rich_help_panel=_PENALTIES)
]
PresencePenalty = Annotated[
    float, typer.Option(help="Above 0 avoids tokens that the answer has.", rich_help_panel=_PENALTIES)
]
FrequencyPenalty = Annotated[
    float, typer.Option(help="The same, each time that the answer has them.", rich_help_panel=_PENALTIES)
]
NoRepeatNgram = Annotated[
    int | None, typer.Option(help="No run of so many tokens occurs twice.", rich_help_panel=_PENALTIES)
]
Engine = Annotated[
    str,
    typer.Option(
        help="cpu (compiled kernels), torch, numpy, or auto: whichever suits the model and the machine.",
        rich_help_panel=_ENGINE,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.", rich_help_panel=_ENGINE)]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="What weights are kept in: fp32, bf16, fp16, q8_0, q4_0 or q4_1. That of the file if not given.",
        rich_help_panel=_ENGINE,
    ),
]
Cache = Annotated[
    str,
    typer.Option(help="float, or int8: keys and values in less memory.", rich_help_panel=_ENGINE),
]
Lookup = Annotated[
    bool,
    typer.Option(
        "--lookup",
        help="Guess from what was there before: the same text, faster where it copies.",
        rich_help_panel=_ENGINE,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(help="A smaller model with the same tokenizer, to guess.", rich_help_panel=_ENGINE),
]


@contextmanager
def starting() -> Iterator[None]:
    """Libraries and a vocabulary are millions of objects that stay: to look through them for garbage again and again
    while they are loaded takes a fifth of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def load(run: str, out: Console, *, engine: str, device: str, **how: Any) -> "LM":
    """The model, to generate with; what it has to say goes to `out`."""
    with starting():
        from tessera.engines import pick_device
        from tessera.lm import LM

        where = pick_device(device, engine)
        return LM.load(run, engine=engine, device=where, say=lambda line: out.print(escape(line), style="dim"), **how)
