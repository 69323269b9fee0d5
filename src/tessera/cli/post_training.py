"""`tessera sft|reward|dpo|ppo|grpo`: a model that goes on from another one, by examples.

Each is `tessera train` with the objective of its name and settings that are usual for it; what a recipe says counts
more. A run that was interrupted goes on by `tessera train --resume`, like any other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tessera.cli.train import split_inputs, start
from tessera.errors import SettingError

EPOCHS = 3.0


@dataclass(frozen=True)
class Verb:
    """What a verb is usually run with: its objectives, the first of which is meant if none is named, and the rate for
    all weights and for adapters."""

    objectives: tuple[str, ...]
    rate: float
    adapter_rate: float
    says: str


VERBS = {
    "sft": Verb(
        ("sft", "distillation"),
        2e-5,
        2e-4,
        """Learn to answer, from conversations.

    [bold]tessera sft chats.jsonl --base MODEL adapt=lora[/bold]""",
    ),
    "reward": Verb(
        ("reward",),
        1e-5,
        1e-4,
        """Learn to judge answers, from pairs of which one is better.

    [bold]tessera reward pairs.jsonl --base MODEL[/bold]""",
    ),
    "dpo": Verb(
        ("dpo", "simpo", "orpo", "kto"),
        1e-6,
        5e-5,
        """Learn which answers are preferred, from pairs (with objective=kto: from answers that are good or bad).

    [bold]tessera dpo pairs.jsonl --base runs/sft-1 adapt=lora[/bold]""",
    ),
    "ppo": Verb(
        ("ppo",),
        1e-6,
        5e-5,
        """Try answers to tasks and learn from their reward, with a value head (PPO).

    [bold]tessera ppo tasks.jsonl --base runs/sft-1 reward.checker=number[/bold]""",
    ),
    "grpo": Verb(
        ("grpo",),
        1e-6,
        5e-5,
        """Try several answers to each task and learn from how they compare (GRPO).

    [bold]tessera grpo tasks.jsonl --base runs/sft-1 reward.model=runs/reward-1[/bold]""",
    ),
}


def usual(verb: str, *, adapted: bool) -> dict[str, Any]:
    """The recipe of a verb, below what is said of it."""
    found = VERBS[verb]
    rate = found.adapter_rate if adapted else found.rate
    return {
        "name": verb,
        "objective": {"name": found.objectives[0]},
        "optimizer": {"name": "adamw", "lr": rate, "betas": [0.9, 0.99], "weight_decay": 0.0},
        "schedule": {"name": "cosine", "warmup": 10, "floor": 0.1},
        "train": {"batch_size": 8, "accumulate": 8 if verb in ("ppo", "grpo") else 1},
    }


def command(verb: str) -> Callable[..., None]:
    """The command of a verb."""

    def run(
        inputs: Annotated[
            list[str] | None,
            typer.Argument(help="Files of examples (.jsonl .json .parquet) and a.b=c overrides.", show_default=False),
        ] = None,
        recipe: Annotated[Path | None, typer.Option("-c", "--config", help="A recipe: TOML or YAML.")] = None,
        base: Annotated[
            str | None, typer.Option(help="The model to begin from: a run, a Hugging Face folder, a GGUF file, hf:...")
        ] = None,
        out: Annotated[Path | None, typer.Option(help=f"The run's folder; runs/{verb}-N if not given.")] = None,
        print_config: Annotated[
            bool, typer.Option("--print-config", help="Print the resolved recipe and stop.")
        ] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would need and stop.")] = False,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")
        ] = False,
    ) -> None:
        settings = recipe_of(verb, inputs or [], recipe, base)
        start(settings, out, print_config=print_config, dry_run=dry_run, as_json=as_json)

    run.__doc__ = VERBS[verb].says
    return run


def recipe_of(verb: str, inputs: list[str], path: Path | None, base: str | None) -> Any:
    """The recipe of a verb, of a file, and of the command line, checked."""
    from tessera.config import read_file
    from tessera.recipe import load_recipe

    sources, overrides = split_inputs(inputs)
    if base is not None:
        overrides = [f"base={base}", *overrides]
    named = [text.partition("=")[0].strip() for text in overrides]
    given = read_file(path) if path is not None else {}
    adapted = "adapt" in given or any(name.split(".")[0] == "adapt" for name in named)
    recipe = load_recipe(path, overrides, sources=sources, base=usual(verb, adapted=adapted))
    known = VERBS[verb].objectives
    if recipe.objective.name not in known:
        raise SettingError("objective", recipe.objective.name, f"{' or '.join(known)}, with tessera {verb}")
    examples = recipe.data.examples
    if examples.epochs is None and "steps" not in recipe.train.model_fields_set and recipe.reads != "tasks":
        data = recipe.data.model_copy(update={"examples": examples.model_copy(update={"epochs": EPOCHS})})
        recipe = recipe.model_copy(update={"data": data})
    return recipe
