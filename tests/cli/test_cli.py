"""The main verbs, from the command line to what they print and leave behind."""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tessera import __version__, demo
from tessera.cli.train import split_inputs
from tessera.config import assign
from tessera.generate.sampling import Sampling
from tessera.model.presets import depth_settings
from tessera.plan import make_plan
from tessera.recipe import load_recipe
from tessera.tokenizers.framing import Framing

PLAIN = re.compile(r"((?!\x1b\[).)*", re.DOTALL)
VERBS = {
    (): "demo train generate chat import export evaluate report runs data tokenizer",
    ("runs",): "list show compare plot",
    ("data",): "prepare stats download",
    ("tokenizer",): "train encode decode show stats compare prune export import",
}


@pytest.mark.parametrize(("noun", "verbs"), VERBS.items())
def test_help_names_every_verb(tessera: Any, noun: tuple[str, ...], verbs: str) -> None:
    done = tessera(*noun, "--help")
    assert done.code == 0
    for verb in verbs.split():
        assert re.search(rf"^\W*{verb}\s", done.out, re.MULTILINE), verb
        assert tessera(*noun, verb, "--help").code == 0


def test_version(tessera: Any) -> None:
    assert tessera("--version").out == f"tessera {__version__}\n"


@pytest.mark.parametrize("arguments", [["trian"], ["train", "--stpes", "3"], ["generate"], ["runs", "show"]])
def test_a_command_that_does_not_exist_exits_with_2(tessera: Any, arguments: list[str]) -> None:
    done = tessera(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err


def test_train_says_what_it_did_in_plain_lines(tessera: Any, text: Path, tmp_path: Path, small: Sequence[str]) -> None:
    done = tessera("train", text, "--out", tmp_path / "new", *small)
    assert done.code == 0
    assert done.err == ""
    assert PLAIN.fullmatch(done.out), "only plain text where there is no terminal"
    assert re.search(r"^step 1/6  loss \d", done.out, re.MULTILINE)
    assert re.search(r"^step 6/6  loss \d\.\d+  validation \d\.\d+ ", done.out, re.MULTILINE)
    for said in ("held out for validation", "Sample", "Where the time went", "bits per byte", "xz -9e", "Next"):
        assert said in done.out, said
    assert f"tessera generate {tmp_path / 'new'} --prompt" in done.out
    assert (tmp_path / "new" / "report.html").exists()


def test_train_json_is_one_object_and_nothing_else(
    tessera: Any, text: Path, tmp_path: Path, small: Sequence[str]
) -> None:
    done = tessera("train", text, "--out", tmp_path / "new", "--json", *small)
    assert done.err == ""
    result = json.loads(done.out)
    assert (result["outcome"], result["step"], result["run"]) == ("finished", 6, str(tmp_path / "new"))
    assert 0 < result["bits_per_byte"] < 20
    assert set(result["compressors"]) == {"xz -9e", "bz2 -9"}


def test_resume_goes_on(tessera: Any, run: Path) -> None:
    done = tessera("train", "--resume", run, "train.steps=8", "--json")
    assert done.code == 0
    assert json.loads(done.out)["step"] == 8
    done = tessera("train", "--resume", run, "--step", "4", "train.steps=8")
    assert "resumed at step 4 of 8" in done.out


@pytest.mark.parametrize(
    "arguments", [["my.txt"], ["-c", "recipe.toml"], ["--out", "runs/x"], ["--preset", "tiny"], ["--depth", "2"]]
)
def test_resume_takes_nothing_that_the_run_has(tessera: Any, run: Path, arguments: list[str]) -> None:
    done = tessera("train", "--resume", run, *arguments)
    assert done.code == 2
    assert "--resume takes a run and a.b=c overrides only" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--preset", "gpt2"),
        ("--depth", "3"),
        ("train.clip=none", "model.norm=none", "model.attention.window=none", "train.max_minutes=0.5"),
        ('sample.prompts=["a \\"quoted\\" one", "line\\nbreak", "ä€😀"]', "optimizer.lr=1e-07"),
        ('tokenizer={name = "bpe", vocab_size = 300, specials = {"<|endoftext|>" = 999}}', "store=sqlite"),
        ("optimizer=sgd", "optimizer.lr=0.5", "schedule=wsd"),
    ],
)
def test_the_printed_config_is_a_recipe_that_says_the_same(
    tessera: Any, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    source = str(tmp_path / 'my "own" text.txt')
    done = tessera("train", source, *arguments, "--print-config")
    assert (done.code, done.err) == (0, "")
    path = tmp_path / "printed.toml"
    path.write_text(done.out, encoding="utf-8")
    options = (
        dict(zip(arguments[:-1:2], arguments[1::2], strict=False))
        if arguments[:1] in (("--preset",), ("--depth",))
        else {}
    )
    expected = load_recipe(
        None,
        [] if options else arguments,
        sources=[source],
        preset=options.get("--preset"),
        depth=int(options["--depth"]) if "--depth" in options else None,
    )
    assert load_recipe(path) == expected
    assert tessera("train", "-c", path, "--print-config").out == done.out


def test_the_config_of_a_run_can_be_printed(tessera: Any, run: Path, tmp_path: Path) -> None:
    done = tessera("train", "--resume", run, "train.steps=9", "--print-config")
    path = tmp_path / "printed.toml"
    path.write_text(done.out, encoding="utf-8")
    assert load_recipe(path).written() == json.loads((run / "recipe.json").read_text()) | {
        "train": json.loads((run / "recipe.json").read_text())["train"] | {"steps": 9}
    }


def test_a_dry_run_says_what_it_needs_and_does_nothing(tessera: Any, tmp_path: Path, small: Sequence[str]) -> None:
    arguments = ("train", tmp_path / "not-there.txt", "--out", tmp_path / "new", *small)
    plan = make_plan(load_recipe(None, small, sources=["x"]))
    said = json.loads(tessera(*arguments, "--dry-run", "--json").out)
    same = {name: value for name, value in plan.__dict__.items() if name != "seconds"}
    assert same.items() <= said.items()
    assert said["memory"] == plan.memory
    assert said["seconds"] > 0
    done = tessera(*arguments, "--dry-run")
    assert f"{plan.n_params:,} parameters" in done.out
    assert list(tmp_path.iterdir()) == []


def test_presets_and_depth_set_the_model(tessera: Any) -> None:
    said = json.loads(
        tessera("train", "x", "--preset", "gpt2", "--dry-run", "--json", "tokenizer.vocab_size=50257").out
    )
    assert said["n_params"] == 124_439_808
    small, large = (json.loads(tessera("train", "x", "--depth", d, "--dry-run", "--json").out) for d in "24")
    assert small["n_params"] < large["n_params"]
    assert large["tokens_per_step"] == depth_settings(4)["train"]["batch_size"] * depth_settings(4)["model"]["context"]


def test_what_is_an_override_and_what_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.txt").write_text("x", encoding="utf-8")
    given = ["my.txt", "a=b.txt", "train.steps=3", "./x=1/y.txt", "seed=4", "data/*.txt", "C:x=3"]
    assert split_inputs(given) == (
        ["my.txt", "a=b.txt", "./x=1/y.txt", "data/*.txt", "C:x=3"],
        ["train.steps=3", "seed=4"],
    )


def test_generate(tessera: Any, run: Path) -> None:
    arguments = ("generate", run, "-p", "the ", "--max-tokens", 12, "--seed", 1)
    done = tessera(*arguments)
    assert done.code == 0
    assert done.out.startswith("the ")
    assert tessera(*arguments).out == done.out
    said = json.loads(tessera(*arguments, "--json", "-n", 2).out)
    assert said["prompt"] == "the "
    assert [answer["tokens"] for answer in said["completions"]] == [12, 12]
    assert done.out == f"the {said['completions'][0]['text']}\n"
    assert "1 of 2" in tessera(*arguments, "-n", 2).out
    stopped = json.loads(tessera(*arguments, "--json", "--stop", said["completions"][0]["text"][3]).out)
    assert stopped["completions"][0]["finish"] == "stop"


def test_generate_shows_markup_as_it_is(tessera: Any, run: Path) -> None:
    prompt = "[bold]x[/red] [1] :smile: 12 \r\x0c"
    assert tessera("generate", run, "-p", prompt, "--max-tokens", 0, "--truncate").out == f"{prompt}\n"


def test_generate_reads_one_file_runs(tessera: Any, text: Path, tmp_path: Path, small: Sequence[str]) -> None:
    assert tessera("train", text, "--out", tmp_path / "one", *small, "store=sqlite").code == 0
    (tmp_path / "one" / "run.db").rename(tmp_path / "moved.db")
    done = tessera("generate", tmp_path / "moved.db", "-p", "a", "--max-tokens", 3)
    assert done.code == 0
    assert done.out.startswith("a")


def test_chat_answers_each_line(tessera: Any, run: Path) -> None:
    done = tessera("chat", run, "--max-tokens", 5, "--seed", 1, input="hello\nyou\n")
    assert done.code == 0  # the end of the input ends the chat
    assert "/reset forgets" in done.out.splitlines()[0]


def test_chat_goes_on_from_all_that_was_said_and_forgets_on_request(
    tessera: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[str] = []

    def stream(prompt: str, sampling: Sampling, *, truncate: bool) -> Iterator[str]:
        assert truncate
        prompts.append(prompt)
        return iter(["an ", "answer\n" if len(prompts) == 1 else "answer"])

    engine = SimpleNamespace(stream=stream)
    lm = SimpleNamespace(engine=engine, tokenizer=SimpleNamespace(framing=Framing()))
    monkeypatch.setattr("tessera.lm.LM.load", lambda *arguments, **settings: lm)
    done = tessera("chat", tmp_path, input="one\ntwo\nthree\n/reset\nfour\n/quit\nnever\n")
    assert done.code == 0
    assert prompts == [
        "one\n",
        "one\nan answer\ntwo\n",
        "one\nan answer\ntwo\nan answer\nthree\n",
        "four\n",
    ]
    assert done.out.count("\nan answer") == 4


def test_evaluate_measures_again_what_training_recorded(tessera: Any, run: Path) -> None:
    said = json.loads(tessera("evaluate", run, "--json").out)
    shown = json.loads(tessera("runs", "show", run, "--json").out)
    recorded = {evaluation["name"]: evaluation["value"] for evaluation in shown["evaluations"]}
    assert said["bits_per_byte"] == pytest.approx(recorded["bits_per_byte"], rel=1e-6)
    assert said["compressors"] == {name: recorded[name] for name in ("xz -9e", "bz2 -9")}
    earlier = json.loads(tessera("evaluate", run, "--json", "--step", 2).out)
    assert earlier["validation_loss"] > said["validation_loss"]
    done = tessera("evaluate", run)
    assert f"this model   {said['bits_per_byte']:.4f} bits per byte" in done.out


def test_report_is_written_anew(tessera: Any, run: Path) -> None:
    (run / "report.html").unlink()
    done = tessera("report", run)
    assert done.out == f"{run / 'report.html'}\n"
    assert "bits per byte" in (run / "report.html").read_text(encoding="utf-8")


def test_demo_on_a_small_text(tessera: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "text.py"
    source.write_text("".join(f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(100)), encoding="utf-8")
    tiny = {"tokenizer.vocab_size": 270, "model.d_model": 16, "model.n_layers": 1, "model.n_heads": 2}
    short = {"model.context": 32, "train.batch_size": 2, "train.threads": 1, "train.steps": 4}
    sample = {"data.source": [str(source)], "sample.sampling.max_tokens": 4, "train.device": "cpu"}
    monkeypatch.setattr(demo, "RECIPE", assign(demo.RECIPE, tiny | short | sample))
    monkeypatch.setattr(demo, "SNIPPETS", Sampling(max_tokens=4, seed=0))
    monkeypatch.setattr(demo, "SNIPPET_PROMPTS", ("def", "class"))
    done = tessera("demo", "--json", "--out", tmp_path / "one")
    assert done.err == ""
    said = json.loads(done.out)
    assert (said["step"], said["snippets"]) == (4, len(demo.SNIPPET_PROMPTS) * demo.SNIPPETS_A_PROMPT)
    done = tessera("demo", "--out", tmp_path / "two", "--seed", 5)
    assert done.code == 0
    assert PLAIN.fullmatch(done.out)
    for command in ("tessera generate", "tessera train --resume", "tessera train my.txt"):
        assert command in done.out
    assert tessera("demo", "--minutes", "0.1").code == 2


def test_ctrl_c_saves_and_says_how_to_go_on(tessera: Any, text: Path, tmp_path: Path, small: Sequence[str]) -> None:
    program = "from tessera.cli.main import main; main()"
    command = [sys.executable, "-c", program, "train", str(text), "--out", str(tmp_path / "new")]
    with subprocess.Popen(
        [*command, *small, "train.steps=1000000", "train.save_every=0", "train.eval_every=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("step "):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130, err
    assert err == ""
    assert PLAIN.fullmatch(out)
    found = re.search(r"Interrupted\. Saved at step ([\d,]+)\. Go on with:\n  tessera (.*)\n", out)
    assert found is not None, out
    step = int(found[1].replace(",", ""))
    assert [path.name for path in (tmp_path / "new" / "checkpoints").iterdir()] == [f"step-{step:06d}"]
    done = tessera(*shlex.split(found[2]), f"train.steps={step + 2}")
    assert done.code == 0, done.err
    assert f"resumed at step {step:,} of {step + 2:,}" in done.out
