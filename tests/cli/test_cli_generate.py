"""`tessera generate`: the options that choose tokens, the form of an answer, and the engine."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Tessera

from tessera import LM

TEXT = 'the cat sat on the mat 0123456789 and the dog sat on the log {}[]":,.'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate") / "run"
    lm = LM.new(TEXT, d_model=32, n_heads=2, d_ff=64, n_layers=2, context=64)
    lm.fit([TEXT], epochs=20, lr=0.01)
    lm.save(folder)
    return folder


def generated(tessera: Tessera, run: Path, *options: str) -> dict[str, Any]:
    result = tessera("generate", run, "-p", "the", "--max-tokens", "20", "--json", *options)
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def refused(tessera: Tessera, run: Path, *options: str) -> str:
    result = tessera("generate", run, *options)
    assert result.code == 2
    return result.err


def test_an_answer_matches_a_pattern(tessera: Tessera, run: Path) -> None:
    (answer,) = generated(tessera, run, "--regex", "[0-9]{3}(cat|dog)", "--seed", "1")["completions"]
    assert re.fullmatch("[0-9]{3}(cat|dog)", answer["text"])


def test_an_answer_obeys_a_schema(tessera: Tessera, run: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}))
    (answer,) = generated(tessera, run, "--json-schema", str(schema), "--seed", "1")["completions"]
    found = json.loads(answer["text"])
    assert len(found) == 2 and set(found) <= {1, 2}


def test_a_schema_that_is_none_is_refused(tessera: Tessera, run: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text("[1")
    assert "schema.json: no JSON schema" in refused(tessera, run, "--json-schema", str(tmp_path / "schema.json"))
    (tmp_path / "schema.json").write_text("[1]")
    assert "a JSON schema is an object" in refused(tessera, run, "--json-schema", str(tmp_path / "schema.json"))


def test_log_probabilities_come_with_the_json(tessera: Tessera, run: Path) -> None:
    (answer,) = generated(tessera, run, "--logprobs", "3", "--temperature", "0")["completions"]
    assert len(answer["logprobs"]) == answer["tokens"]
    for choice in answer["logprobs"]:
        assert len(choice["top"]) == 3
        assert choice["logprob"] == choice["top"][0]["logprob"]  # greedy
    assert "".join(choice["text"] for choice in answer["logprobs"]) == answer["text"]


def test_beams_find_no_less_likely_an_answer_than_greed_does(tessera: Tessera, run: Path) -> None:
    lm = LM.load(run)
    (greedy,) = generated(tessera, run, "--temperature", "0", "--logprobs", "0")["completions"]
    beams = generated(tessera, run, "--beams", "4", "-n", "2")["completions"]
    assert len(beams) == 2
    best = lm.engine.beam("the", width=4, max_tokens=20)[0]
    assert beams[0]["text"] == best.text
    assert best.score >= sum(each["logprob"] for each in greedy["logprobs"]) / greedy["tokens"] - 1e-6


def test_what_beams_do_not_know_is_refused(tessera: Tessera, run: Path) -> None:
    assert "regex" in refused(tessera, run, "--beams", "2", "--regex", "a+")
    assert "truncate" in refused(tessera, run, "--beams", "2", "--truncate")


def test_the_best_of_several(tessera: Tessera, run: Path) -> None:
    of_three = generated(tessera, run, "--seed", "5", "-n", "3", "--logprobs", "0")["completions"]
    (best,) = generated(tessera, run, "--seed", "5", "--best-of", "3")["completions"]
    means = {each["text"]: sum(c["logprob"] for c in each["logprobs"]) / each["tokens"] for each in of_three}
    assert best["text"] == max(means, key=lambda text: means[text])


@pytest.mark.parametrize(
    "options",
    [
        ["--typical", "0.9", "--presence-penalty", "0.5", "--frequency-penalty", "0.5", "--no-repeat-ngram", "3"],
        ["--mirostat", "3"],
        ["--guidance", "2", "--negative-prompt", "dog"],
        ["--min-tokens", "20", "--ignore-eos"],
        ["--engine", "cpu", "--dtype", "q8_0", "--cache", "int8", "--lookup"],
    ],
)
def test_each_setting_gives_the_same_text_again(tessera: Tessera, run: Path, options: list[str]) -> None:
    assert generated(tessera, run, *options, "--seed", "2") == generated(tessera, run, *options, "--seed", "2")
