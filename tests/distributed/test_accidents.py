"""What happens to one of two processes is met by both alike: a signal, a loss that is no number, memory refused."""

import signal
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.tiny import in_processes, train

STEPS, MICRO = 8, 2
IN_STEP_4 = {"call": 3 * MICRO + 1}
"""In the first micro-batch of the fourth step."""
OF: dict[str, Any] = {"steps": STEPS, "eval_every": 0}
SIGNALS: dict[str, dict[str, Any]] = {
    f"{name} to {who}": {"accident": {"what": name, "rank": rank, **IN_STEP_4}}
    for name in ("SIGTERM", "SIGINT")
    for who, rank in (("the second", 1), ("all", None))
}
NOT_FINITE: dict[str, dict[str, Any]] = {
    f"{way} {action}": {
        "way": way,
        "on_nonfinite": action,
        "save_every": 2,
        "accident": {"what": "nan", "rank": 1, **IN_STEP_4},
    }
    for way, action in (("ddp", "stop"), ("ddp", "skip"), ("ddp", "rewind"), ("fsdp", "stop"), ("fsdp", "skip"))
}
REFUSED = {"memory refused": {"accident": {"what": "memory", "rank": 1, **IN_STEP_4}}}
TASKS = SIGNALS | NOT_FINITE | REFUSED


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("met")
    return in_processes(folder, {name: OF | of | {"run": str(folder / f"run {name}")} for name, of in TASKS.items()})


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_to_any_process_stops_all_at_the_end_of_the_step(name: str, met: dict[str, list[Any]]) -> None:
    for process in met[name]:
        assert process["outcome"] == "interrupted"
        assert process["stopped_by"] == getattr(signal, name.partition(" ")[0])
        assert len(process["steps"]) == 4
        assert process["saved"] == [4]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_loss_that_is_no_number_in_one_process_stops_all(way: str, met: dict[str, list[Any]]) -> None:
    for process in met[f"{way} stop"]:
        assert process["error"] == "DivergedError"
        assert "the loss of micro-batch 1 of 2 is nan" in process["message"]
        assert process["saved"] == [2]


@pytest.mark.parametrize("name", ["ddp skip", "fsdp skip", "ddp rewind"])
def test_it_is_passed_over_by_all_as_by_one(name: str, met: dict[str, list[Any]], tmp_path: Path) -> None:
    """Until then, and from then on, the losses are those of one process to which it happened."""
    of = OF | NOT_FINITE[name]
    alone = train(run=str(tmp_path / "run"), **of | {"accident": {"what": "nan", **IN_STEP_4}})
    first, second = met[name]
    assert first["steps"] == second["steps"]
    assert first["outcome"] == alone["outcome"] == "finished"
    assert first["said"] == second["said"] == alone["said"]
    assert len(first["steps"]) == len(alone["steps"])
    for measured, expected in zip(first["steps"], alone["steps"], strict=True):
        assert measured == pytest.approx(expected, abs=1e-6, rel=0)


def test_memory_refused_to_one_process_makes_all_learn_in_smaller_parts(met: dict[str, list[Any]]) -> None:
    alone = train(**OF)
    first, second = met["memory refused"]
    assert first["steps"] == second["steps"]
    assert "refused to another process" in first["said"][0]
    assert "out of memory (refused)" in second["said"][0]
    for measured, expected in zip(first["steps"], alone["steps"], strict=True):
        assert measured == pytest.approx(expected, abs=1e-6, rel=0)
