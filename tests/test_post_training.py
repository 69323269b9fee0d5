"""From a model to one that learned from examples: recipes, runs, resumption, lineage, and what is refused."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.post_training import ADAPT, RECIPE, write_base, write_examples, write_lines

from tessera import job
from tessera.config import assign
from tessera.errors import DamagedError, InputError, SettingError
from tessera.lm import LM
from tessera.material_examples import Examples
from tessera.plan import check_room
from tessera.reading import what_was_read
from tessera.recipe import Recipe, load_recipe, settled
from tessera.store.run import Run

RECIPES = Path(__file__).parents[1] / "recipes"
TRIED = {"prompts": 4, "max_tokens": 6}
TRIES = {
    "grpo": {"objective": {"name": "grpo", "group_size": 2, **TRIED}, "reward.checker": "exact"},
    "ppo": {"objective": {"name": "ppo", "epochs": 2, **TRIED}, "reward.checker": {"name": "regex", "pattern": "a"}},
}
"""Recipes of reinforcement."""
READS = {
    "grpo": "tasks",
    "ppo": "tasks",
    "sft": "conversations",
    "dpo": "pairs",
    "reward": "pairs",
    "orpo": "pairs",
    "kto": "judged",
}
ADAPTED = {"adapt": ADAPT}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_examples(tmp_path_factory.mktemp("examples"))


def recipe(objective: str, base: Path, examples: dict[str, Path], *overrides: str, **more: Any) -> Recipe:
    content = assign(RECIPE, {"objective": objective, "base": str(base), **TRIES.get(objective, {}), **more})
    return load_recipe(None, overrides, sources=[str(examples[READS[objective]])], base=content)


def weights(path: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds."""
    with Run.open(path) as run:
        return {name: tensor.clone() for name, tensor in run.checkpoints.read(step).tensors.items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("objective", [name for name in READS if name not in TRIES])
def test_it_learns_and_says_what_it_was_before(
    objective: str, adapted: bool, base: Path, examples: dict[str, Path], tmp_path: Path
) -> None:
    given = recipe(objective, base, examples, "train.steps=12", **(ADAPTED if adapted else {}))
    result = job.train(given, tmp_path / "run")
    result.run.close()
    assert result.outcome == "finished"
    assert result.before.keys() == result.figures.keys()
    assert result.figures["validation_loss"] < result.before["validation_loss"]
    if objective == "dpo":
        assert result.before["accuracy"] == 0.5  # nothing is preferred yet
        assert result.before["validation_loss"] == pytest.approx(0.693147, abs=1e-5)
    again = job.evaluate(tmp_path / "run")
    for name, value in result.figures.items():
        assert again[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize(
    ("objective", "adapted", "store"),
    [
        ("sft", False, "files"),
        ("dpo", True, "files"),
        ("dpo", False, "sqlite"),
        ("kto", True, "files"),
        ("grpo", True, "files"),
        ("ppo", False, "sqlite"),
    ],
)
def test_a_broken_off_run_goes_on_bit_for_bit(
    objective: str, adapted: bool, store: str, base: Path, examples: dict[str, Path], tmp_path: Path
) -> None:
    given = recipe(objective, base, examples, f"store={store}", **(ADAPTED if adapted else {}))
    job.train(given, tmp_path / "whole").run.close()

    class Interrupting(job.Watcher):
        def steps(self) -> Any:
            import contextlib
            import os
            import signal

            def stop(progress: Any) -> None:
                if progress.step == 3:
                    os.kill(os.getpid(), signal.SIGINT)

            return contextlib.nullcontext(stop)

    broken = job.train(given, tmp_path / "broken", watcher=Interrupting())
    broken.run.close()
    assert broken.outcome == "interrupted"
    job.resume(tmp_path / "broken").run.close()
    assert_same(weights(tmp_path / "broken", 6), weights(tmp_path / "whole", 6))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("objective", TRIES)
def test_answers_are_tried_and_judged(
    objective: str, adapted: bool, base: Path, examples: dict[str, Path], tmp_path: Path
) -> None:
    result = job.train(recipe(objective, base, examples, **(ADAPTED if adapted else {})), tmp_path / "run")
    assert result.figures.keys() == {"validation_loss", "reward", "length", "ended"}
    assert result.figures["validation_loss"] == -result.figures["reward"]
    assert {"reward", "kl"} <= set(result.run.metric_names())
    result.run.close()
    again = job.evaluate(tmp_path / "run")
    assert again["length"] == pytest.approx(result.figures["length"])


def test_a_reward_model_judges(base: Path, examples: dict[str, Path], tmp_path: Path) -> None:
    judge = tmp_path / "judge"
    job.train(recipe("reward", base, examples), judge).run.close()
    more = {"reward": {"model": str(judge)}}
    result = job.train(recipe("grpo", base, examples, "train.steps=2", **more), tmp_path / "run")
    result.run.close()
    assert result.figures["reward"] not in (0.0, 1.0)
    with pytest.raises(InputError, match="no run; a reward model is one that tessera reward has trained"):
        job.train(recipe("grpo", base, examples, reward={"model": str(tmp_path / "none")}), tmp_path / "other")
    with pytest.raises(InputError, match="no reward head"):
        job.train(recipe("grpo", base, examples, reward={"model": str(base)}), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_adapters_alone_are_kept_and_open_as_a_model(base: Path, examples: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copytree(base, folder / "base")
    result = job.train(recipe("sft", folder / "base", examples, **ADAPTED), folder / "run")
    result.run.close()
    kept = weights(folder / "run")
    assert any(".adapters.default.up" in name for name in kept)
    assert not any(name.endswith("attention.query.base.weight") for name in kept)
    lm = LM.load(folder / "run")
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        torch.testing.assert_close(lm.model(ids), result.model.eval()(ids), rtol=1e-5, atol=1e-5)
    assert lm.tokenizer.framing.template is not None  # it can be talked to

    folder.rename(tmp_path / "moved")  # base and run together
    assert torch.equal(LM.load(tmp_path / "moved" / "run").model(ids), lm.model(ids))
    shutil.rmtree(tmp_path / "moved" / "base")
    with pytest.raises(InputError, match="adapters only, and the model below them cannot be opened"):
        LM.load(tmp_path / "moved" / "run")
    write_base(tmp_path / "moved" / "base", seed=1)
    with pytest.raises(InputError, match="made for another base"):
        LM.load(tmp_path / "moved" / "run")


def test_a_run_whose_base_has_moved_goes_on(base: Path, examples: dict[str, Path], tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(base, here)
    job.train(recipe("sft", here, examples, **ADAPTED), tmp_path / "a" / "run").run.close()
    here.rename(tmp_path / "there")
    with pytest.raises(InputError, match="no such run, folder or file"):
        job.resume(tmp_path / "a" / "run", ["train.steps=7"])
    job.resume(tmp_path / "a" / "run", ["train.steps=7", f"base={tmp_path / 'there'}"]).run.close()
    assert LM.load(tmp_path / "a" / "run").n_params == LM.load(base).n_params


def test_what_a_run_came_from(base: Path, examples: dict[str, Path], tmp_path: Path) -> None:
    job.train(recipe("sft", base, examples, **ADAPTED), tmp_path / "sft").run.close()
    job.train(recipe("dpo", tmp_path / "sft", examples, **ADAPTED), tmp_path / "dpo").run.close()
    with Run.open(tmp_path / "dpo") as run, Run.open(tmp_path / "sft") as sft, Run.open(base) as first:
        assert [(each.id, each.step) for each in run.lineage()] == [(sft.id, 6), (first.id, 0)]
        assert run.info["data_manifest"]["examples"] == {"train": 20, "validation": 6}


def test_the_quantized_base(base: Path, examples: dict[str, Path], tmp_path: Path) -> None:
    result = job.train(recipe("sft", base, examples, adapt=ADAPT | {"base": "nf4"}), tmp_path / "run")
    result.run.close()
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        torch.testing.assert_close(LM.load(tmp_path / "run").model(ids), result.model.eval()(ids), rtol=1e-4, atol=1e-4)


def test_distillation_comes_near_its_teacher(base: Path, examples: dict[str, Path], tmp_path: Path) -> None:
    teacher = write_base(tmp_path / "teacher", seed=7)
    content = assign(RECIPE, {"objective": "distillation", "base": str(base), "teacher": str(teacher)})
    given = load_recipe(None, ["train.steps=12"], sources=[str(examples["conversations"])], base=content)
    result = job.train(given, tmp_path / "run")
    result.run.close()
    assert result.figures["divergence"] < result.before["divergence"]


def test_going_on_with_another_text(base: Path, tmp_path: Path) -> None:
    """The base brings its tokenizer; documents are its text."""
    text = tmp_path / "text.txt"
    text.write_text("so it was, and so it will be\n" * 400, encoding="utf-8")
    content = assign(RECIPE, {"base": str(base), "data": {}})
    result = job.train(load_recipe(None, ["train.steps=20"], sources=[str(text)], base=content), tmp_path / "run")
    result.run.close()
    assert result.tokenizer.fingerprint == LM.load(base).tokenizer.fingerprint
    assert result.figures["validation_loss"] < result.before["validation_loss"] - 0.5


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
def test_what_a_step_read(objective: str, base: Path, examples: dict[str, Path], tmp_path: Path) -> None:
    """All of an epoch's examples are read once, and each is told by its file and line."""
    given = recipe(objective, base, examples, "train.steps=5", "data.examples.arrange=packed")
    job.train(given, tmp_path / "run").run.close()
    told = [what_was_read(tmp_path / "run", step=step, rows=True) for step in range(1, 6)]
    (source,) = told[-1].sources
    places = [stretch.document for step in told for row in step.rows for stretch in row.stretches]
    assert source.rows == sum(len(step.rows) for step in told)
    assert source.tokens == sum(stretch.tokens for step in told for row in step.rows for stretch in row.stretches)
    if objective != "sft":  # 5 steps of 4 are all of the 20, in pairs both answers
        assert source.epochs == 1
        assert len(set(places)) == 20
    kept = [json.loads(line) for line in (tmp_path / "run" / "data" / "examples.jsonl").read_text().splitlines()]
    assert set(places) <= {each["where"] for each in kept if each["part"] == "train"}


def test_so_many_epochs(base: Path, examples: dict[str, Path], tmp_path: Path) -> None:
    result = job.train(recipe("sft", base, examples, "data.examples.epochs=1.4"), tmp_path / "run")
    result.run.close()
    assert result.step == 7  # 20 examples in batches of 4
    later = recipe("sft", base, examples, "data.examples.epochs=9")
    assert load_recipe(None, ["train.steps=2"], base=later.written()).data.examples.epochs is None


def test_files_of_their_own_are_held_out(base: Path, examples: dict[str, Path], tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text("".join(examples["conversations"].read_text().splitlines(keepends=True)[:3]), encoding="utf-8")
    result = job.train(recipe("sft", base, examples, f"data.examples.validation={held}"), tmp_path / "run")
    assert result.run.info["data_manifest"]["examples"] == {"train": 26, "validation": 3}
    result.run.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base": None}, "base"),
        ({"base": None, "adapt": ADAPT}, "adapt"),
        ({"model.d_model": 48}, "beside a base, which brings its own"),
        ({"tokenizer": {"name": "char"}}, "beside a base, which brings its own"),
        ({"reward": {"checker": "exact"}}, "nothing with sft"),
        ({"teacher": "somewhere"}, "none with sft"),
        ({"objective": "distillation"}, "teacher"),
        ({"adapt": {"name": "lora", "rank": 0}}, "at least 1"),
        ({"data.examples.held_out": 26}, "fewer than there are examples (26)"),
        ({"data.examples.template": "llama3"}, "which the tokenizer does not have"),
        ({"data.examples.max_tokens": 16}, "conversations.jsonl:1: "),
    ],
)
def test_what_is_refused_leaves_nothing(
    change: dict[str, Any], said: str, base: Path, examples: dict[str, Path], tmp_path: Path
) -> None:
    content = assign(RECIPE, {"objective": "sft", "base": str(base), "data.source": [str(examples["conversations"])]})
    with pytest.raises((SettingError, InputError)) as error:
        job.train(load_recipe(None, base=assign(content, change)), tmp_path / "run")
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


BAD = {
    "not JSON": ("conversations", '{"messages": ['),
    "role": ("conversations", {"messages": [{"role": "robot", "content": "x"}]}),
    "empty": (
        "conversations",
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]},
    ),
    "fit": (
        "conversations",
        {"messages": [{"role": "user", "content": 300 * "x"}, {"role": "assistant", "content": "y"}]},
    ),
    "the same": ("pairs", {"prompt": "x", "chosen": "y", "rejected": "y"}),
    "label": ("judged", {"prompt": "x", "completion": "y", "label": "good"}),
}


@pytest.mark.parametrize("said", BAD)
def test_bad_data_is_named_by_file_and_line(said: str, base: Path, examples: dict[str, Path], tmp_path: Path) -> None:
    kind, bad = BAD[said]
    path = tmp_path / "bad.jsonl"
    lines = examples[kind].read_text().splitlines()
    lines[16] = bad if isinstance(bad, str) else json.dumps(bad)
    path.write_text("\n".join(lines), encoding="utf-8")
    objective = {"conversations": "sft", "pairs": "dpo", "judged": "kto"}[kind]
    with pytest.raises(InputError) as error:
        job.train(recipe(objective, base, {kind: path}), tmp_path / "run")
    assert f"{path}:17: " in str(error.value)
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_template_without_an_end(base: Path, examples: dict[str, Path], tmp_path: Path) -> None:
    template = tmp_path / "endless.jinja"
    template.write_text("{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}")
    with pytest.raises(InputError, match="end"):
        job.train(recipe("sft", base, examples, f"data.examples.template={template}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_examples_that_were_changed(base: Path, examples: dict[str, Path], tmp_path: Path) -> None:
    job.train(recipe("sft", base, examples), tmp_path / "run").run.close()
    kept = tmp_path / "run" / "data" / "examples.jsonl"
    kept.write_text(kept.read_text().replace("cat", "rat"))
    with pytest.raises(DamagedError, match=r"examples\.jsonl"):
        job.resume(tmp_path / "run", ["train.steps=8"])


def test_any_text_and_any_other_field_is_kept(base: Path, tmp_path: Path) -> None:
    """Characters at which Python ends a line, and what a table has that JSON has not."""
    pyarrow = pytest.importorskip("pyarrow", reason="a .parquet file needs the package pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="a .parquet file needs the package pyarrow")
    said = ["a\u2028b", "c\x85d", "e\x0cf", "g\r\nh", "\u4f60\u597d", "i", "j", "k"]
    when = [datetime(2026, 1, 1 + day, tzinfo=UTC) for day in range(len(said))]
    table = pyarrow.table(
        {"prompt": ["Say"] * len(said), "completion": said, "when": when, "raw": [b"\xff"] * len(said)}
    )
    parquet.write_table(table, tmp_path / "said.parquet")
    given = recipe("sft", base, {"conversations": tmp_path / "said.parquet"}, "data.examples.held_out=2")
    job.train(given, tmp_path / "run").run.close()
    result = job.resume(tmp_path / "run", ["train.steps=8"])
    assert result.step == 8
    result.run.close()


def test_the_files_may_be_gone(base: Path, tmp_path: Path) -> None:
    made = write_examples(tmp_path)
    job.train(recipe("dpo", base, made), tmp_path / "run").run.close()
    for path in made.values():
        path.unlink()
    result = job.resume(tmp_path / "run", ["train.steps=8"])
    assert result.step == 8
    result.run.close()


def test_a_recipe_that_was_printed_is_settled(base: Path, examples: dict[str, Path]) -> None:
    first = settled(recipe("sft", base, examples, **ADAPTED))
    again = settled(load_recipe(None, base=first.written()))
    assert again == first
    assert first.model.d_model == 32
    assert first.n_vocab == LM.load(base).model.n_vocab


@pytest.mark.parametrize("path", sorted(RECIPES.glob("smollm2-*.toml")), ids=lambda path: path.stem)
def test_the_recipes_run(path: Path, base: Path, examples: dict[str, Path], tmp_path: Path) -> None:
    """On a small model and few examples; that of SmolLM2 takes minutes."""
    kind = READS[load_recipe(path).objective.name]
    short = ["data.examples.held_out=6", "data.examples.epochs=1", "data.examples.max_tokens=64", "train.device=cpu"]
    given = [f"base={base}", f"data.source={examples[kind]}", "data.examples.template=chatml", *short]
    result = job.train(load_recipe(path, [*given, "sample.sampling.max_tokens=4"]), tmp_path / "run")
    result.run.close()
    assert result.outcome == "finished"
    assert result.figures["validation_loss"] < result.before["validation_loss"]


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto", "grpo"])
def test_the_room_is_that_of_the_longest_row(
    objective: str, base: Path, examples: dict[str, Path], tmp_path: Path
) -> None:
    given = settled(recipe(objective, base, examples, "train.batch_size=20"))
    _, material = Examples.make(given, tmp_path, LM.load(base).tokenizer)
    source = material.rows["train"].source
    if objective == "grpo":
        assert material.longest(given) == max(map(len, source.prompts)) + TRIED["max_tokens"]
        return
    (batch,) = source.in_order()
    sides = [batch] if objective == "sft" else list(batch.sides)
    widths = [side.inputs_BT.shape[1] + 1 for side in sides]  # the last token is not among the inputs
    assert material.longest(given) == len(sides) * max(widths)
    said: list[str] = []
    check_room(given, tmp_path, say=said.append, row=material.longest(given))
    assert said == []


def test_few_examples_cannot_be_divided(base: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "one.jsonl", [{"prompt": "x", "completion": "y"}])
    content = assign(RECIPE, {"objective": "sft", "base": str(base), "data.examples.held_out": None})
    with pytest.raises(SettingError, match="fewer than there are examples"):
        job.train(load_recipe(None, sources=[str(path)], base=content), tmp_path / "run")
