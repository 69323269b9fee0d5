"""The micro-batches of a step, in the sizes that the ramps give them."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tessera.train.settings import TrainSettings

if TYPE_CHECKING:
    from tessera.objectives.objective import Objective


def n_rows(batch: Any) -> int:
    """The samples in a batch: a dataclass whose first field has a row for each."""
    return len(getattr(batch, fields(batch)[0].name))


class Drawing:
    """Draws from an objective. `noted` says what the last step was given: the data cursor before it, and the rows of
    each of its micro-batches."""

    def __init__(self, objective: "Objective", settings: TrainSettings) -> None:
        self._objective, self._settings = objective, settings
        self._batch_ramp, self._context_ramp = settings.ramp("batch_ramp"), settings.ramp("context_ramp")
        self.noted: tuple[Mapping[str, Any], list[int]] = {}, []

    def draw(self, batches: Iterator[Any], step: int) -> list[Any]:
        """What is learned from after `step` steps."""
        settings = self._settings
        if settings.batch_ramp is not None:
            self._objective.data.batch_size = self._batch_ramp(step, settings.batch_size)  # type: ignore[attr-defined]
        cursor = self._objective.get_extra_state()
        drawn = [next(batches) for _ in range(settings.accumulate)]
        self.noted = cursor, [n_rows(batch) for batch in drawn]
        if settings.context_ramp is None:
            return drawn
        return [batch.in_rows_of(self._context_ramp(step, batch.inputs_BT.shape[1])) for batch in drawn]
