"""`tessera sft`, `reward` and `dpo` as they are typed, and what is shown of runs that came of each other."""

import json
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.post_training import write_base, write_examples

TRAIN = ["train.steps=4", "train.batch_size=4", "train.eval_every=0", "train.device=cpu"]
QUICK = [*TRAIN, "sample.sampling.max_tokens=3"]
CHATML = "data.examples.template=chatml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("made")
    return write_base(folder / "base"), write_examples(folder)


def test_from_a_model_to_an_assistant(tessera: Any, made: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    base, files = made
    sft, dpo = tmp_path / "sft", tmp_path / "dpo"
    given = [files["conversations"], "--base", base, "--out", sft, CHATML, *QUICK, "--json"]
    summary = json.loads(tessera("sft", *given).out)
    assert summary["validation_loss"] < summary["before"]["validation_loss"]
    told = tessera("dpo", files["pairs"], "--base", sft, "--out", dpo, "adapt=lora", *QUICK).out
    assert "accuracy" in told
    assert "before" in told
    assert f"tessera chat {dpo}" in told
    shown = "".join(tessera("runs", "show", dpo).out.split())
    assert f"{dpo}(dpo,step4)<-{sft}(sft,step4)<-{base}(step0)" in shown
    lineage = json.loads(tessera("runs", "show", dpo, "--json").out)["lineage"]
    assert [each["path"] for each in lineage] == [str(dpo), str(sft), str(base)]
    assert json.loads(tessera("evaluate", dpo, "--json").out)["accuracy"] == pytest.approx(0.5, abs=0.5)
    assert "margin" in tessera("evaluate", dpo).out
    assert "before" in (dpo / "report.html").read_text()
    assert "peft" in tessera("export", dpo, "--to", "adapter", "--out", tmp_path / "adapter").out
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", str(sft))
    refused = tessera("export", sft, "--to", "adapter", "--out", tmp_path / "none")
    assert "learned all weights, and no adapters" in refused.err


def test_a_printed_recipe_does_the_same(tessera: Any, made: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    base, files = made
    printed = tessera("reward", files["pairs"], "--base", base, CHATML, *QUICK, "--print-config").out
    recipe = tomllib.loads(printed)
    assert recipe["objective"]["name"] == "reward"
    assert recipe["model"]["d_model"] == 32
    path = tmp_path / "recipe.toml"
    path.write_text(printed)
    first = tessera("reward", files["pairs"], "--base", base, CHATML, *QUICK, "--out", tmp_path / "a", "--json").out
    again = tessera("train", "-c", path, "--out", tmp_path / "b", "--json").out
    assert json.loads(first)["validation_loss"] == json.loads(again)["validation_loss"]
    assert "tessera ppo" in tessera("reward", "-c", path, "--out", tmp_path / "c").out  # what a reward is for


def test_rates_and_epochs_that_are_usual(tessera: Any, made: tuple[Path, dict[str, Path]]) -> None:
    base, files = made

    def recipe(*more: str) -> dict[str, Any]:
        return tomllib.loads(tessera("sft", files["conversations"], "--base", base, *more, "--print-config").out)

    whole, adapted = recipe(), recipe("adapt.name=lora", "adapt.rank=4")
    assert (whole["optimizer"]["lr"], adapted["optimizer"]["lr"]) == (2e-5, 2e-4)
    assert whole["data"]["examples"]["epochs"] == 3.0
    assert recipe("train.steps=7")["data"]["examples"]["epochs"] == "none"


def test_what_it_would_need(tessera: Any, made: tuple[Path, dict[str, Path]]) -> None:
    base, files = made
    common = [files["conversations"], "--base", base, "--dry-run", "--json", CHATML, *QUICK]
    whole = json.loads(tessera("sft", *common).out)
    adapted = json.loads(tessera("sft", *common, "adapt=lora").out)
    quantized = json.loads(tessera("sft", *common, 'adapt={name="lora", base="nf4"}').out)
    assert adapted["optimizer"] < whole["optimizer"] / 2
    assert adapted["gradients"] < whole["gradients"] / 2
    assert quantized["weights"] < adapted["weights"]


def test_what_it_would_need_follows_from_the_examples(
    tessera: Any, made: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of so many epochs, in rows as long as the longest example; nothing is left of what was read."""
    base, files = made
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setattr(tempfile, "tempdir", str(empty))
    given = [files["conversations"], "--base", base, CHATML, "data.examples.held_out=6", *QUICK[1:]]
    plan = json.loads(tessera("sft", *given, "data.examples.epochs=2", "--dry-run", "--json").out)
    marks, roles = 4, len("user\n" + "\n" + "assistant\n")
    longest = marks + roles + len("Say cat 10") + len("catcat")
    assert plan["tokens_per_step"] == 4 * longest
    assert plan["tokens"] == 10 * plan["tokens_per_step"]  # 2 epochs of 20 examples, 4 a step
    assert "in 10 steps" in tessera("sft", *given, "data.examples.epochs=2", "--dry-run").out
    assert list(empty.iterdir()) == []

    tessera("sft", *given, "data.examples.epochs=0.5", "--out", tmp_path / "run")
    moved = files["conversations"].rename(tmp_path / "moved.jsonl")
    again = json.loads(tessera("train", "--resume", tmp_path / "run", "train.steps=5", "--dry-run", "--json").out)
    moved.rename(files["conversations"])
    assert again["tokens"] == 5 * plan["tokens_per_step"]


def test_what_a_run_reached(tessera: Any, made: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    base, files = made
    tessera("sft", files["conversations"], "--base", base, "--out", tmp_path / "run", CHATML, *QUICK)
    told = json.loads(tessera("evaluate", tmp_path / "run", "--json").out)
    assert (told["reads"], told["bits_per_byte"]) == ("conversations", None)
    said = tessera("evaluate", tmp_path / "run").out
    figures = {name: float(value) for name, value in (line.split() for line in said.splitlines())}
    assert figures == {name: pytest.approx(told[name], abs=1e-4) for name in ("validation_loss", "perplexity")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sft", "objective=dpo"], "objective = 'dpo'"),
        (["dpo", "objective=next-token"], "simpo or orpo or kto"),
        (["sft"], "base"),
        (["grpo", "--base", "BASE"], "one of reward.checker and reward.model"),
        (["ppo", "--base", "BASE", "reward.checker=exact", "reward.model=x"], "one of reward.checker and reward.model"),
        (["grpo", "--base", "BASE", "reward.checker=guess"], "guess"),
        (["sft", "--base", "nowhere"], "nowhere: no such run, folder or file"),
    ],
)
def test_what_is_refused(
    tessera: Any, made: tuple[Path, dict[str, Path]], arguments: list[str], said: str, tmp_path: Path
) -> None:
    base, files = made
    kind = {"sft": "conversations", "dpo": "pairs"}.get(arguments[0], "tasks")
    arguments = [str(base) if each == "BASE" else each for each in arguments]
    done = tessera(*arguments, files[kind], "--out", tmp_path / "run")
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "run").exists()
