"""The example of reinforcement, in a short form: from sums to the plot, and what is held out."""

import math
from pathlib import Path

from examples.reinforcement import HELD_OUT, JUDGE, careless, make_tasks, run

from tessera.objectives.judges import Answer


def test_the_example_runs_from_the_tasks_to_the_plot(tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    figures = run(plot, pretraining=2, steps=2)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert set(figures) == {"before", "grpo", "ppo"}
    assert all(math.isfinite(value) for told in figures.values() for value in told.values())


def test_one_way_of_saying_it_is_right_and_no_pair_is_in_both_parts() -> None:
    learned, kept = make_tasks()
    assert (len(learned), len(kept)) == (8100 - HELD_OUT, HELD_OUT)
    assert not {task.where for task in learned} & {task.where for task in kept}
    assert len({task.where for task in kept}) == HELD_OUT
    said = careless(kept[0])
    assert JUDGE([Answer(kept[0], [], [], text) for text in said]) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert eval(kept[0].where.rstrip("=")) == int(said[0])
