"""`tessera train`: text in, run out."""

import json
import os
import re
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli.console import console, duration, size
from tessera.errors import DivergedError, FollowedError, InputError, SettingError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console

    from tessera.job import Result
    from tessera.recipe import Recipe
    from tessera.train.world import World

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
    or_resume: Annotated[
        bool, typer.Option("--or-resume", help="With --out: where the run is there already, go on with it as it is.")
    ] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved recipe and stop.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would need and stop.")] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            help="What computes: torch, or numpy, which needs nothing beside it and has train.workers=N processes."
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="Train with so many processes: one a GPU, or the cores divided among them."),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="With --devices: where a process is lost, go on from the newest checkpoint.")
    ] = 0,
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

    [bold]tessera train -c recipe.toml --devices 8[/bold], or on many machines: torchrun ... -m tessera train ...
    """
    from tessera.job import resumed_recipe
    from tessera.recipe import load_recipe

    check_start(devices, max_restarts, launched=_is_launched())
    if or_resume and out is None:
        raise SettingError("--or-resume", or_resume, "--out, which says where the run may be")
    sources, overrides = split_inputs(inputs or [])
    if engine is not None:
        overrides = [*overrides, f"engine={engine}"]
    if resume is not None:
        if sources or recipe or preset or depth or out:
            raise InputError("--resume takes a run and a.b=c overrides only: text, recipe and folder are the run's own")
        settings = resumed_recipe(resume, overrides)
    else:
        settings = load_recipe(recipe, overrides, sources=sources, preset=preset, depth=depth)
    _check_processes(settings, devices)
    if print_config or dry_run:
        start(settings, out, print_config=print_config, dry_run=dry_run, as_json=as_json, resumed=resume)
    elif devices is not None and (devices > 1 or max_restarts):
        given = {"-c": recipe, "--preset": preset, "--depth": depth, "--step": step, "--engine": engine}
        options = [text for name, value in given.items() if value is not None for text in (name, str(value))]
        options += ["--profile"] * profile + ["--json"] * as_json + ["--or-resume"] * or_resume
        processes = Start(inputs or [], options, settings, out=out, resume=resume)
        sys.exit(processes.run(devices, max_restarts))
    else:
        _run(settings, out, resume, overrides, step, or_resume=or_resume, profile=profile, as_json=as_json)


def _run(
    settings: "Recipe",
    out: Path | None,
    resume: Path | None,
    overrides: list[str],
    step: int | None,
    *,
    or_resume: bool,
    profile: bool,
    as_json: bool,
) -> None:
    """Train in this process, which may be one of several."""
    from tessera.cli.watch import show_result
    from tessera.store.folder import is_run

    with _joined(settings) as world:
        if or_resume and out is not None and (is_run(out) if world is None else world.first(lambda: is_run(out))):
            resume, overrides = out, []
        is_first = world is None or world.is_first
        out_console = console(quiet=as_json or not is_first)
        result = _train(settings, out, resume, overrides, step, profile, out_console, world)
        if is_first:
            show_result(out_console, result)
            if as_json:
                print(json.dumps(result.summary()))
        _end(result, as_json=as_json and is_first)


def _joined(settings: "Recipe") -> "AbstractContextManager[World | None]":
    """The processes of torch that this one is one of; NumPy starts its own."""
    if settings.engine == "numpy":
        return nullcontext()
    from tessera.train.world import joined

    return joined(settings.train.device)


def _is_launched() -> bool:
    """Whether a launcher such as torchrun started this process, as one of any number."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def _check_processes(settings: "Recipe", devices: int | None) -> None:
    if settings.engine != "numpy":
        return
    if devices is not None:
        raise SettingError(
            "--devices", devices, "nothing with the NumPy engine: train.workers=N has it use N processes"
        )
    if _is_launched():
        raise SettingError("engine", "numpy", "torch with torchrun: train.workers=N has NumPy use N processes")


def start(
    settings: "Recipe",
    out: Path | None,
    *,
    print_config: bool,
    dry_run: bool,
    as_json: bool,
    resumed: Path | None = None,
) -> None:
    """Train a new run in this process, or only show what it would be (or what going on with `resumed` would be)."""
    from tessera.cli.watch import show_result
    from tessera.recipe import settled

    if print_config:
        print_recipe(settled(settings))
    elif dry_run:
        show_plan(settled(settings), as_json=as_json, resumed=resumed)
    else:
        out_console = console(quiet=as_json)
        result = _train(settings, out, None, [], None, False, out_console, None)
        show_result(out_console, result)
        if as_json:
            print(json.dumps(result.summary()))
        _end(result, as_json=as_json)


def _train(
    settings: "Recipe",
    out: Path | None,
    resume: Path | None,
    overrides: list[str],
    step: int | None,
    profile: bool,
    out_console: "Console",
    world: "World | None",
) -> "Result":
    """What was asked for, as one of the processes that do it."""
    from tessera import job
    from tessera.cli.watch import ConsoleWatcher

    watcher = ConsoleWatcher(out_console)
    try:
        if resume is None:
            result = job.train(settings, out, watcher=watcher, profile=profile, world=world)
        else:
            result = job.resume(resume, overrides, step=step, watcher=watcher, profile=profile, world=world)
    except (DivergedError, FollowedError) as error:
        if world is None or world.is_first:
            raise
        sys.exit(error.exit_code)  # the first process says why
    result.run.close()
    return result


def _end(result: "Result", *, as_json: bool) -> None:
    from tessera.cli.watch import resume_hint

    if result.outcome == "interrupted":
        if as_json:
            print(resume_hint(result), file=sys.stderr)
        sys.exit(128 + result.stopped_by)


def check_start(devices: int | None, max_restarts: int, *, launched: bool) -> None:
    """Raise a `SettingError` where it is not clear who starts the processes."""
    if devices is not None and launched:
        raise SettingError("--devices", devices, "nothing with torchrun, whose --nproc-per-node says it")
    if max_restarts and devices is None:
        by = "torchrun's own option" if launched else "--devices, which says how many processes are watched"
        raise SettingError("--max-restarts", max_restarts, by)


class Start:
    """`tessera train --devices N`: starts the processes, and starts them again where one is lost."""

    def __init__(
        self, inputs: list[str], options: list[str], settings: "Recipe", *, out: Path | None, resume: Path | None
    ) -> None:
        from tessera.opening import free_path

        self.settings, self.resume = settings, resume
        self.run_path = resume or out or free_path(Path("runs") / settings.name)
        self.was_free = not self.run_path.exists()
        where = "--out" if resume is None else "--resume"
        self.command = [sys.executable, "-m", "tessera", "train", *inputs, *options, where, str(self.run_path)]

    def run(self, n: int, max_restarts: int) -> int:
        """The exit code."""
        from tessera.train.launch import Launch, check_devices

        check_devices(self.settings.train.device, n)
        launch = Launch(n, say=lambda line: print(line, file=sys.stderr, flush=True))
        return launch.run(self.command, again=self._again, max_restarts=max_restarts)

    def _again(self) -> list[str]:
        """To go on with the run; where it was lost before there was one, to begin again."""
        from tessera.store.folder import is_run

        if is_run(self.run_path):
            return [*self.command, *([] if self.resume else ["--or-resume"])]
        if self.was_free:
            shutil.rmtree(self.run_path, ignore_errors=True)  # shards without a run, which would be in the way
        return self.command


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
        key = _toml_key(name)
        if isinstance(value, dict):
            groups.append((f"{path}{key}", value))
        else:
            lines.append(f"{key} = {_toml_value(value)}")
    for name, group in groups:
        lines += ["", f"[{name}]", *toml_lines(group, f"{name}.")]
    return lines


def _toml_key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _toml_value(name)


def _toml_value(value: Any) -> str:
    """JSON is TOML for strings and numbers, but for the one control character that JSON lets through."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(name)} = {_toml_value(each)}" for name, each in value.items()) + "}"
    value = "none" if value is None else value
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def show_plan(recipe: "Recipe", *, as_json: bool, resumed: Path | None = None) -> None:
    """What the run would need."""
    from tessera.opening import foreseen
    from tessera.plan import make_plan

    recipe, row = foreseen(recipe, resumed)
    plan = make_plan(recipe, row=row)
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
