"""`tessera data reflect`: instructions and responses, made better by a judge model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tessera.cli.console import console

if TYPE_CHECKING:
    from tessera.generate.provider import Provider
    from tessera.reflection import Told


def reflect(
    sources: Annotated[list[str], typer.Argument(help="Files of instructions and responses: .jsonl, .json, .parquet.")],
    judge: Annotated[
        str, typer.Option(help="A model (as for `tessera chat`), or a URL such as http://localhost:11434/v1.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The .jsonl to write; what is in it already is gone on with.")
    ],
    judge_model: Annotated[str | None, typer.Option(help="With a URL: the name of the model there.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="With a URL: the variable that holds a key.")] = None,
    only: Annotated[str | None, typer.Option(help="Improve only the instruction, or only the response.")] = None,
    n: Annotated[int | None, typer.Option("-n", help="Only the first n.")] = None,
    max_tokens: Annotated[int, typer.Option(help="The most tokens in an answer of the judge.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed asks a local judge for the same answers.")] = 0,
    timeout: Annotated[float, typer.Option(help="With a URL: seconds that the server may be silent.")] = 300.0,
    dtype: Annotated[str, typer.Option(help="A local judge's numbers: fp32, bf16 or fp16.")] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Have a judge model improve instructions and responses; what it gives no usable answer to stays as it is.

    Each line is on the disk before the next is asked for, so an interrupted command goes on when it is given again.
    """
    from dataclasses import asdict

    from tessera.data.records import read_records
    from tessera.errors import SettingError
    from tessera.reflection import reflect as improve

    if n is not None and n < 1:
        raise SettingError("n", n, "a whole number from 1")
    if max_tokens < 1:
        raise SettingError("max-tokens", max_tokens, "a whole number from 1")
    screen = console(quiet=as_json)
    records = read_records(sources)[:n]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    provider, name = _provider(
        judge, judge_model, api_key_env, timeout, dtype, lambda line: screen.print(escape(line), style="dim")
    )
    with Progress(*columns, console=screen) as bar:
        task = bar.add_task("pairs", total=len(records))

        def show(told: "Told", total: int) -> None:
            bar.update(task, completed=told.pairs, total=total)

        told = improve(
            records,
            provider,
            out,
            judge=name,
            only=only,  # type: ignore[arg-type]  # checked there
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            progress=show,
        )
        bar.update(task, completed=told.pairs)
    if as_json:
        print(json.dumps(asdict(told) | {"out": str(out)}))
    screen.print(escape(f"{told.describe()}\n{out}"))


def _provider(
    judge: str, model: str | None, api_key_env: str | None, timeout: float, dtype: str, say: Callable[[str], None]
) -> tuple["Provider", str]:
    """Who is asked, and the name that is noted in each line."""
    from tessera.errors import SettingError
    from tessera.generate.provider import Endpoint

    if judge.startswith(("http://", "https://")):
        if model is None:
            raise SettingError("judge-model", model, f"the name of a model at {judge}")
        endpoint = Endpoint(judge, model, api_key_env, seconds=timeout)
        return endpoint, f"{model} at {endpoint.url}"
    for name, value in (("judge-model", model), ("api-key-env", api_key_env)):
        if value is not None:
            raise SettingError(name, value, f"nothing, as {judge} is no URL")

    from tessera.lm import LM
    from tessera.reflection import LocalModel

    return LocalModel(LM.load(judge, dtype=dtype, say=say)), judge
