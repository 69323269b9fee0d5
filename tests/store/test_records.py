import math
import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.store import sqlite
from tessera.store.records import Ancestor, Evaluation, Sample
from tessera.store.run import Run


@pytest.fixture
def run(make_run):
    with make_run() as run:
        yield run


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.floats())
def test_a_metric_is_the_same_double(run, value):
    run.log_metrics(1, {"x": value})
    ((step, back),) = run.metrics("x")
    assert step == 1
    assert back == value or (math.isnan(back) and math.isnan(value))


def test_metrics_in_order_and_by_name(run):
    for step in (3, 1, 2):
        run.log_metrics(step, {"loss": step / 10, "lr": 1.0})
    run.log_metrics(2, {"loss": 7})
    assert run.metrics("loss") == [(1, 0.1), (2, 7.0), (3, 0.3)]
    assert run.metrics("other") == []
    assert run.metric_names() == ["loss", "lr"]
    assert run.latest() == {"loss": (3, 0.3), "lr": (3, 1.0)}


def test_samples_keep_every_character(run):
    run.add_sample(1, "to be", ' or\x00 not 🙂 "to"\n')
    run.add_sample(1, "half a pair \ud800", "x")
    assert run.samples() == [Sample(1, "to be", ' or\x00 not 🙂 "to"\n'), Sample(1, "half a pair ?", "x")]


def test_an_evaluation_is_replaced_by_a_newer_one_of_its_step(run):
    run.add_evaluation(1, "bits_per_byte", 2.0, {"bytes": 10})
    run.add_evaluation(1, "loss", math.nan)
    run.add_evaluation(1, "bits_per_byte", 1.5)
    loss, bits = run.evaluations()
    assert bits == Evaluation(1, "bits_per_byte", 1.5, {})
    assert math.isnan(loss.value)


def test_going_back_forgets_what_came_after(run):
    for step in (1, 2, 3):
        run.log_metrics(step, {"loss": 1.0})
        run.add_sample(step, "", "")
        run.add_evaluation(step, "x", 1.0)
    run.truncate_after(2)
    assert [step for step, _ in run.metrics("loss")] == [1, 2]
    assert [sample.step for sample in run.samples()] == [1, 2]
    assert [evaluation.step for evaluation in run.evaluations()] == [1, 2]


def test_info(run):
    assert run.info == {"seed": 7}
    run.set_info("seconds", {"train": 1.5})
    run.set_info("seconds", {"train": 2.5})
    assert run.info == {"seed": 7, "seconds": {"train": 2.5}}


def test_lineage_goes_back_to_the_first(make_run):
    with make_run(name="base") as base, make_run(name="sft") as sft, make_run(name="dpo") as dpo:
        sft.set_lineage(base, step=100)
        dpo.set_lineage(sft)
        assert dpo.lineage() == [
            Ancestor(sft.id, sft.path.absolute(), None),
            Ancestor(base.id, base.path.absolute(), 100),
        ]
        assert base.lineage() == []
    with Run.open(dpo.path) as again:
        assert [ancestor.id for ancestor in again.lineage()] == [sft.id, base.id]


def test_a_run_of_before_there_were_events_can_be_read_and_goes_on(run, monkeypatch):
    run.log_metrics(1, {"loss": 2.0})
    run.close()
    connection = sqlite3.connect(run.path / "run.db")
    later = "DROP TABLE events; DROP TABLE draws; ALTER TABLE checkpoints DROP COLUMN seal"
    connection.executescript(f"{later}; PRAGMA user_version = 1")
    connection.close()
    with monkeypatch.context() as patch:
        patch.setattr(sqlite.os, "access", lambda path, mode: False)  # a disk that cannot be written
        with Run.open(run.path) as old:
            assert old.events() == []
            assert old.metrics("loss") == [(1, 2.0)]
    with Run.open(run.path) as again:
        again.add_event(2, "a", action="b", detail="c")
        assert [event.step for event in again.events()] == [2]
        assert again.metrics("loss") == [(1, 2.0)]
