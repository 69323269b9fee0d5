"""The training benchmark: what it puts out, and how it says that a peer is not there."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.train import Options, best_ratio, measure_loop, ratio, speed
from benchmarks.train_ours import decoder
from benchmarks.train_peers import NotHereError, peers
from benchmarks.train_precision import AS_SHIPPED, best_fp32, measurable, peers_way
from benchmarks.train_shapes import SHAPES
from benchmarks.train_weights import GPT2, gpt2_weights, in_names
from rich.console import Console

from tessera.train.precision import Precision

ROOT = Path(__file__).parents[2]
SPEED = ("precision", "tokens_per_second", "mfu", "peak_gflops", "fp32", "equal_precision", "vs_nanogpt")
SECONDS = {"tessera": [(2.0, 1.0), (4.0, 2.0), (3.0, 3.0)], "p": [(2.0, 3.0), (8.0, 4.0), (3.0, 3.0)]}
"""Of three rounds, (wall, processor)."""


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    assert ratio(SECONDS, "p") == 2.0 and ratio(SECONDS, "p", clock=0) == 1.0
    assert ratio(SECONDS, "not here") is None
    assert ratio(SECONDS, "p", "tessera fp32") == 2.0  # not run by itself, as it is what ships


def test_the_better_of_eager_and_compiled_counts() -> None:
    compiled = {"p compiled": [(1.0, 1.0)] * 3}
    assert best_ratio(SECONDS | compiled, "p") == 0.5
    assert best_ratio(SECONDS, "p") == 2.0 and best_ratio(SECONDS, "q") is None


def test_a_missing_peer_is_said_and_the_rest_is_measured(tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    figures, seconds = speed("S", Options(quick=True, rounds=1, nanogpt=tmp_path), console)
    assert f"without nanogpt: there is no {tmp_path / 'model.py'}" in console.export_text()
    assert {f"S_{key}" for key in SPEED} <= set(figures) and figures["S_vs_nanogpt"] is None
    assert len(seconds[AS_SHIPPED]) == 1 and figures["S_tokens_per_second"] > 0


def test_no_nanogpt_of_llamas_kind(tmp_path: Path) -> None:
    with pytest.raises(NotHereError, match="GPT-2's block alone"):
        peers(nanogpt=tmp_path)["nanogpt"].step(SHAPES["quick M"])


def test_a_package_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "litgpt").mkdir()
    (tmp_path / "litgpt" / "__init__.py").touch()
    (tmp_path / "litgpt" / "model.py").write_text("raise ImportError('no lightning')")
    code = (
        "from pathlib import Path; import sys; from benchmarks.train_peers import peers, NotHereError\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from benchmarks.train_shapes import SHAPES\n"
        "try: peers(folder=Path(sys.argv[1]))['litgpt'].step(SHAPES['quick M'])\n"
        "except NotHereError as why: print(why)\n"
        "print('tessera' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    said, holds_tessera = done.stdout.splitlines()
    assert "no lightning" in said and "--peers" in said
    assert holds_tessera == "False"  # a peer is weighed without our modules


def test_every_weight_has_a_name_and_a_joined_one_is_in_order() -> None:
    own = decoder(replace(SHAPES["quick S"], bias=True)).state_dict()
    found = gpt2_weights(own, transposed=True)
    parts = [own[f"blocks.1.attention.{part}.weight"] for part in ("query", "key", "value")]
    assert torch.equal(found["transformer.h.1.attn.c_attn.weight"], torch.cat(parts).T)
    assert torch.equal(found["lm_head.weight"], own["embedding.weight"])
    with pytest.raises(KeyError, match=r"feed_forward\.gate"):
        in_names({"blocks.0.feed_forward.gate.weight": torch.zeros(1)}, GPT2)


def test_in_which_precision_a_peer_is_compared() -> None:
    bf16 = peers_way(Precision("bf16"))
    assert bf16 is not None and bf16.dtype == torch.bfloat16
    onednn = peers_way(Precision("fp32", onednn=True))
    assert onednn is not None and onednn.onednn and onednn.dtype == torch.float32
    assert peers_way(Precision("int8")) is None and measurable(Precision("int8")) == best_fp32()


@pytest.mark.slow
def test_the_loop_the_start_and_muon() -> None:
    figures = measure_loop(Options(quick=True, rounds=1), Console(quiet=True))
    assert 0 < figures["loop_overhead"] < 1 and 0 < figures["startup_seconds"] < 120 and figures["muon_cost"] < 1


@pytest.mark.slow
def test_the_last_line_is_json_with_all_figures_of_a_size() -> None:
    command = [sys.executable, "-m", "benchmarks.train", "--quick", "--only", "S", "--rounds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"S_memory", "S_memory_fp32", "S_megabytes", "S_curve", "mfu", "threads"} <= set(found)
    assert found["S_memory"] is None and found["S_megabytes"] > 100  # no nanoGPT was given
