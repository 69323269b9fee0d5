"""`tessera train`: text in, run out."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli.console import console, duration, size
from tessera.errors import InputError

if TYPE_CHECKING:
    from tessera.recipe import Recipe

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=")


def train(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, globs or named corpora (.txt .md .py .jsonl, .gz of each), and a.b=c overrides.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[Path | None, typer.Option("-c", "--config", help="A recipe: TOML or YAML.")] = None,
    preset: Annotated[str | None, typer.Option(help="A model's shape by name, such as gpt2 or nano.")] = None,
    depth: Annotated[
        int | None, typer.Option(help="The one dial: layers, from which width, heads, rate, batch and schedule follow.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME if not given.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run, from its newest valid checkpoint.")] = None,
    step: Annotated[int | None, typer.Option(help="With --resume: from this checkpoint.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved recipe and stop.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would need and stop.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Tell where a step's time goes, and leave a trace in the run.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Train a model on text.

    [bold]tessera train my.txt[/bold]

    [bold]tessera train -c recipe.toml train.steps=500[/bold]

    [bold]tessera train --resume runs/run-1[/bold]
    """
    from tessera import job
    from tessera.cli.watch import ConsoleWatcher, resume_hint, show_result
    from tessera.recipe import load_recipe

    sources, overrides = split_inputs(inputs or [])
    out_console = console(quiet=as_json)
    watcher = ConsoleWatcher(out_console)
    if resume is not None:
        if sources or recipe or preset or depth or out:
            raise InputError("--resume takes a run and a.b=c overrides only: text, recipe and folder are the run's own")
        if print_config or dry_run:
            settings = job.resumed_recipe(resume, overrides)
        else:
            result = job.resume(resume, overrides, step=step, watcher=watcher, profile=profile)
    else:
        settings = load_recipe(recipe, overrides, sources=sources, preset=preset, depth=depth)
        if not (print_config or dry_run):
            result = job.train(settings, out, watcher=watcher, profile=profile)
    if print_config:
        print_recipe(settings)
    elif dry_run:
        show_plan(settings, as_json=as_json)
    else:
        result.run.close()
        show_result(out_console, result)
        if as_json:
            print(json.dumps(result.summary()))
        if result.outcome == "interrupted":
            if as_json:
                print(resume_hint(result), file=sys.stderr)
            sys.exit(128 + result.stopped_by)


def split_inputs(inputs: list[str]) -> tuple[list[str], list[str]]:
    """Sources and overrides: `a.b=c` is an override unless a file of that name exists."""
    is_override = [bool(_OVERRIDE.match(text)) and not Path(text).exists() for text in inputs]
    sources = [text for text, is_set in zip(inputs, is_override, strict=True) if not is_set]
    return sources, [text for text, is_set in zip(inputs, is_override, strict=True) if is_set]


def print_recipe(recipe: "Recipe") -> None:
    """The resolved recipe as TOML, ready to be saved and given to `-c`."""
    print("\n".join(toml_lines(recipe.written())))


def toml_lines(content: dict[str, Any], path: str = "") -> list[str]:
    """`content` as TOML; None, which TOML does not have, is the text "none"."""
    lines, groups = [], []
    for name, value in content.items():
        key = name if _BARE_KEY.fullmatch(name) else _toml_value(name)
        if isinstance(value, dict):
            groups.append((f"{path}{key}", value))
        else:
            lines.append(f"{key} = {_toml_value('none' if value is None else value)}")
    for name, group in groups:
        lines += ["", f"[{name}]", *toml_lines(group, f"{name}.")]
    return lines


def _toml_value(value: Any) -> str:
    """JSON is TOML for strings, numbers and lists, but for the one control character that JSON lets through."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def show_plan(recipe: "Recipe", *, as_json: bool) -> None:
    """What the run would need."""
    from tessera.plan import make_plan

    plan = make_plan(recipe)
    if as_json:
        print(json.dumps({**plan.__dict__, "memory": plan.memory}))
        return
    out = console()
    table = f"{plan.n_embedding_params:,} of them the token table ({plan.n_vocab:,} tokens)"
    out.print(f"model       {plan.n_params:,} parameters, {table}")
    if plan.n_active_params < plan.n_params:
        out.print(f"            {plan.n_active_params:,} of them at work for a generated token")
    out.print(
        f"memory      about {size(plan.memory)}: weights {size(plan.weights)}, gradients {size(plan.gradients)}, "
        f"optimizer {size(plan.optimizer)}, activations about {size(plan.activations)}"
    )
    out.print(f"tokens      {plan.tokens:,} in {recipe.train.steps:,} steps of {plan.tokens_per_step:,}")
    out.print(f"time        about {duration(plan.seconds)} on {plan.device}")
