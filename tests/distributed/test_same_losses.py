"""Two processes that share each batch learn what one learns from all of it, by copies (ddp) and by parts (fsdp)."""

from typing import Any

import pytest
from tests.distributed.tiny import in_processes, train

WITHIN = 1e-6
EXPERTS = {"name": "moe", "n_experts": 3, "n_active": 2, "d_expert": 8, "balance": "bias", "bias_rate": 0.01}
TRAININGS: dict[str, dict[str, Any]] = {
    "adamw": {"clip": 0.5},
    "fewer rows than processes": {"batch_size": 1, "accumulate": 3},
    "experts": {"model": {"feed_forward": EXPERTS}},
    "schedule-free": {"optimizer": "adamw-schedule-free"},
}
WITH_COPIES: dict[str, dict[str, Any]] = {
    "muon": {"optimizer": "muon"},
    "further tokens": {"model": {"n_future": 1}, "lengths": "one"},
}
MORE: dict[str, dict[str, Any]] = {
    "unclipped, all at once": {"clip": None, "accumulate": 1, "batch_size": 7},
    "sgd": {"optimizer": "sgd"},
    "lion": {"optimizer": "lion"},
    "ema": {"ema": 0.9},
    "tied": {"model": {"tied": True}},
    "ramp": {"batch_ramp": {"name": "linear", "start": 1, "steps": 8}},
}
ALONE = TRAININGS | WITH_COPIES | MORE | {"adafactor": {"optimizer": "adafactor"}}
SHARED = {f"ddp {name}": {"way": "ddp", **of} for name, of in (TRAININGS | WITH_COPIES).items()}
SHARED |= {f"fsdp {name}": {"way": "fsdp", **of} for name, of in TRAININGS.items()}
SHARED_SLOWLY = {f"{way} {name}": {"way": way, **of} for way in ("ddp", "fsdp") for name, of in MORE.items()}
SHARED_SLOWLY["ddp adafactor"] = {"way": "ddp", "optimizer": "adafactor"}
REFUSED = {
    "fsdp muon": {"way": "fsdp", "optimizer": "muon"},
    "fsdp adafactor": {"way": "fsdp", "optimizer": "adafactor"},
    "fsdp further tokens": {"way": "fsdp", "model": {"n_future": 1}},
}
ROUNDS: dict[str, dict[str, Any]] = {
    f"{way} {n} micro-batches": {"way": way, "accumulate": n, "eval_every": 0, "steps": 6}
    for way in ("ddp", "fsdp")
    for n in (1, 4)
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    return in_processes(tmp_path_factory.mktemp("shared"), SHARED | REFUSED | ROUNDS)


@pytest.fixture(scope="module")
def shared_slowly(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    return in_processes(tmp_path_factory.mktemp("shared"), SHARED_SLOWLY)


def check_same(name: str, shared: dict[str, list[Any]]) -> None:
    alone = train(**ALONE[name.partition(" ")[2]])
    first, second = shared[name]
    assert first["outcome"] == second["outcome"] == alone["outcome"] == "finished"
    assert first["steps"] == second["steps"], "all are told the same"
    assert len(first["steps"]) == 20
    for measured, expected in zip(first["steps"], alone["steps"], strict=True):
        assert measured == pytest.approx(expected, abs=WITHIN, rel=0)


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_learn_what_one_learns(name: str, shared: dict[str, list[Any]]) -> None:
    check_same(name, shared)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED_SLOWLY)
def test_two_processes_learn_what_one_learns_otherwise_too(name: str, shared_slowly: dict[str, list[Any]]) -> None:
    check_same(name, shared_slowly)


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_whole_matrices_is_refused_to_parts(name: str, shared: dict[str, list[Any]]) -> None:
    for process in shared[name]:
        assert process["error"] == "SettingError"
        assert "ddp" in process["message"]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_gradients_are_summed_once_a_step_however_many_micro_batches(way: str, shared: dict[str, list[Any]]) -> None:
    one, four = (shared[f"{way} {n} micro-batches"][0]["exchanges"] for n in (1, 4))
    assert one == four
    kind = "all" if way == "ddp" else "reduce_scatter"
    assert one[kind] % ROUNDS[f"{way} 1 micro-batches"]["steps"] == 0
