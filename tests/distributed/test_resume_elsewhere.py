"""What several processes saved goes on in them bit for bit, and in any other number of them with the same losses."""

import random
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.tiny import in_processes, train

from tessera.errors import DamagedError
from tessera.store.run import Run

WITHIN = 1e-6
STEPS = 12
AT = 5
OF: dict[str, Any] = {"steps": STEPS, "save_every": 1, "ema": 0.9}
BY_ITSELF: dict[str, Any] = OF | {"model": {"dropout": 0.2}}
WAYS = ("ddp", "fsdp")
CUTS = sorted(random.Random(11).sample(range(1, STEPS), 4))
OTHER_CUTS = sorted(set(range(1, STEPS)) - set(CUTS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resumed")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Any:
    """One process, uninterrupted, which has saved each step."""
    return train(run=str(folder / "alone"), **OF)


def copied(folder: Path, name: str, source: str, *, at: int = AT, **more: Any) -> dict[str, Any]:
    """A task of this name that goes on with what another one has saved."""
    return {name: {"run": str(folder / name), "copy_of": str(folder / source), "resume": True, "at": at, **more}}


def cut(folder: Path, way: str, at: int) -> dict[str, Any]:
    return copied(folder, f"{way} dropout {at}", f"{way} dropout", at=at, way=way, **BY_ITSELF)


@pytest.fixture(scope="module")
def together(folder: Path, alone: Any) -> dict[str, list[Any]]:
    """What two processes made of it, and of what they have saved themselves."""
    tasks: dict[str, Any] = {}
    for way in WAYS:
        tasks[way] = {"run": str(folder / way), "way": way, **OF}
        tasks[f"{way} dropout"] = {"run": str(folder / f"{way} dropout"), "way": way, **BY_ITSELF}
        tasks |= copied(folder, f"alone to {way}", "alone", way=way, **OF)
        for at in CUTS:
            tasks |= cut(folder, way, at)
    tasks |= copied(folder, "ddp to fsdp", "ddp", way="fsdp", **OF)
    return in_processes(folder, tasks | copied(folder, "fsdp to ddp", "fsdp", **OF))


@pytest.fixture(scope="module")
def cut_elsewhere(folder: Path, together: dict[str, list[Any]]) -> dict[str, list[Any]]:
    tasks: dict[str, Any] = {}
    for at in OTHER_CUTS:
        tasks |= cut(folder, "ddp", at) | cut(folder, "fsdp", at)
    return in_processes(folder, tasks)


def check_goes_on(steps: Any, expected: Any) -> None:
    assert len(steps) == STEPS - AT
    for measured, step in zip(steps, expected[AT:], strict=True):
        assert measured == pytest.approx(step, abs=WITHIN, rel=0)


@pytest.mark.parametrize("name", [*(f"alone to {way}" for way in WAYS), "ddp to fsdp", "fsdp to ddp"])
def test_other_processes_go_on_with_the_same_losses(name: str, together: dict[str, list[Any]], alone: Any) -> None:
    for process in together[name]:
        assert process["outcome"] == "finished"
        check_goes_on(process["steps"], alone["steps"])


@pytest.mark.parametrize("way", WAYS)
def test_one_process_goes_on_with_what_two_have_saved(
    way: str, together: dict[str, list[Any]], alone: Any, folder: Path
) -> None:
    assert together[way][0]["saved"] == list(range(1, STEPS + 1))
    run = str(folder / f"{way} to alone")
    resumed = train(run=run, copy_of=str(folder / way), resume=True, at=AT, **OF)
    check_goes_on(resumed["steps"], alone["steps"])


def check_bit_for_bit(folder: Path, whole: Any, resumed: Any, way: str, at: int) -> None:
    for process, expected in zip(resumed, whole, strict=True):
        assert process["steps"] == expected["steps"][at:]
        assert process["drawn"] == expected["drawn"]
    assert whole[0]["drawn"] != whole[1]["drawn"]
    with Run.open(folder / f"{way} dropout") as one, Run.open(folder / f"{way} dropout {at}") as other:
        ours, theirs = one.checkpoints.read(STEPS), other.checkpoints.read(STEPS)
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert [name for name in ours.tensors if not ours.tensors[name].equal(theirs.tensors[name])] == []
    for meta in (ours.meta, theirs.meta):
        del meta["progress"]["seconds"]
    assert ours.meta == theirs.meta


@pytest.mark.parametrize("at", CUTS)
@pytest.mark.parametrize("way", WAYS)
def test_as_many_processes_go_on_bit_for_bit(way: str, at: int, together: dict[str, list[Any]], folder: Path) -> None:
    """With dropout, which each process draws from a stream of its own, cut anywhere."""
    check_bit_for_bit(folder, together[f"{way} dropout"], together[f"{way} dropout {at}"], way, at)


@pytest.mark.slow
@pytest.mark.parametrize("at", OTHER_CUTS)
@pytest.mark.parametrize("way", WAYS)
def test_they_do_so_from_each_step(
    way: str, at: int, together: dict[str, list[Any]], cut_elsewhere: dict[str, list[Any]], folder: Path
) -> None:
    check_bit_for_bit(folder, together[f"{way} dropout"], cut_elsewhere[f"{way} dropout {at}"], way, at)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_each_process_writes_a_part_of_what_is_cut(together: dict[str, list[Any]], folder: Path) -> None:
    names = {path.name for path in (folder / "fsdp" / "checkpoints" / "step-000005").iterdir()}
    assert {"model.part-00000.safetensors", "model.part-00001.safetensors", "parts.json", "manifest.json"} <= names
    assert {"optimizer.part-00000.safetensors", "optimizer.part-00001.safetensors"} <= names


@pytest.mark.parametrize("file", ["model.part-00001.safetensors", "optimizer.part-00000.safetensors", "parts.json"])
@pytest.mark.parametrize("damage", ["flipped bit", "cut short"])
def test_a_damaged_part_is_named_and_the_step_before_it_is_used(
    file: str, damage: str, together: dict[str, list[Any]], folder: Path, tmp_path: Path, alone: Any
) -> None:
    run = str(tmp_path / "run")
    trained = train(run=run, copy_of=str(folder / "fsdp"), resume=True, **OF)
    assert trained["skipped"] == [] and trained["steps"] == []
    part = Path(run) / "checkpoints" / f"step-{STEPS:06d}" / file
    if damage == "flipped bit":
        flip(part, part.stat().st_size - 1)
    else:
        part.write_bytes(part.read_bytes()[:-1])
    resumed = train(run=run, resume=True, **OF)
    (skipped,) = resumed["skipped"]
    assert file in skipped
    assert len(resumed["steps"]) == 1
    assert resumed["steps"][0] == pytest.approx(alone["steps"][-1], abs=WITHIN, rel=0)
    with Run.open(run) as opened:
        assert opened.checkpoints.read().step == STEPS  # made again


def test_a_part_that_is_gone_is_named(together: dict[str, list[Any]], folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run=str(run), copy_of=str(folder / "fsdp"), resume=True, **OF)
    part = run / "checkpoints" / f"step-{AT:06d}" / "model.part-00000.safetensors"
    part.unlink()
    with Run.open(run) as opened, pytest.raises(DamagedError, match=r"model\.part-00000"):
        opened.checkpoints.read(AT)
