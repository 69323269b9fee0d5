"""`tessera data reflect`: with a server that speaks the protocol, with a model here, and with wrong arguments."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tessera.reflection import END, NEW_INSTRUCTION, NEW_RESPONSE

PAIRS = [{"instruction": f"Say {i}.", "input": "", "output": f"{i}"} for i in range(3)]


class Judge(http.server.BaseHTTPRequestHandler):
    """Improves everything."""

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        first = f"{NEW_INSTRUCTION}\nnew question\n" if NEW_INSTRUCTION in asked else ""
        said = f"Weak.\n{first}{NEW_RESPONSE}\n{'new' if first else 'best'} answer\n{END}"
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(PAIRS), encoding="utf-8")
    return path


def test_a_server_judges_and_the_rest_follows_later(tessera: Any, pairs: Path, tmp_path: Path, url: str) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ("data", "reflect", pairs, "--judge", url, "--judge-model", "big", "-o", out)
    done = tessera(*arguments, "-n", "1")
    assert done.code == 0, done.err
    assert "1 pairs; instructions: 1 improved, 0 kept as they were" in done.out
    done = tessera(*arguments, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {
        "pairs": 3,
        "resumed": 1,
        "improved": {"instruction": 3, "response": 3},
        "kept": {"instruction": 0, "response": 0},
        "out": str(out),
    }
    made = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(line["instruction"], line["output"]) for line in made] == [("new question", "best answer")] * 3
    assert [line["before"] for line in made] == PAIRS
    assert made[0]["judge"] == f"big at {url}/chat/completions"


def test_a_model_without_a_template_cannot_judge(tessera: Any, pairs: Path, tmp_path: Path, run: Path) -> None:
    done = tessera("data", "reflect", pairs, "--judge", run, "-o", tmp_path / "out.jsonl")
    assert done.code == 2
    assert "pairs.json:1: the tokenizer has no chat template" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--judge", "http://localhost:1/v1"], "judge-model = None: expected the name of a model at http://localhost"),
        (["--judge", "no/such/model"], "no/such/model: no such run, folder or file"),
        (["--judge", "x", "--judge-model", "y"], "judge-model = 'y': expected nothing, as x is no URL"),
        (["--judge", "x", "-n", "0"], "n = 0: expected a whole number from 1"),
        (["--judge", "http://h/v1", "--judge-model", "y", "--only", "input"], "only = 'input': expected instruction"),
        (["--judge", "http://h/v1", "--judge-model", "y", "--api-key-env", "NO_KEY_X"], "api_key_env = 'NO_KEY_X'"),
    ],
)
def test_wrong_arguments(tessera: Any, pairs: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = tessera("data", "reflect", pairs, *arguments, "-o", tmp_path / "out.jsonl")
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "out.jsonl").exists()
