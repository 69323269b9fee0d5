"""What an objective is: a source of batches, and the loss of one.

Pretraining, fine-tuning on answers, preferences and reinforcement differ in these two alone, so that there is one
training loop for all. An objective is a module: what is learned are its parameters (the model is one part; a value
head would be another), and where it stands in its data is a part of its state.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from tessera.data.batch import Batch
from tessera.model.decoder import Decoder

Metrics = dict[str, Tensor | float]


class Source(Protocol):
    """Where batches come from: an endless iterator that can say where it stands and go back there."""

    def __next__(self) -> Any: ...

    def state(self) -> Mapping[str, Any]:
        """The cursor, as JSON-able data: after `restore(state())` the same batches follow."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` was taken; an `InputError` if that was another source."""


class Objective(nn.Module, ABC):
    """A model and the data that it learns from; a subclass says the loss in `forward`."""

    reads: ClassVar[str] = "documents"
    """What its batches are made of: documents, conversations, pairs (of answers), judged (answers), or tasks, to which
    it tries answers of its own."""
    unit: ClassVar[str] = "tokens"
    """What a batch's `n_targets` counts."""
    watched: ClassVar[tuple[str, ...]] = ()
    """The metrics to be shown while it trains."""

    def __init__(self, *, model: nn.Module, data: Source) -> None:
        super().__init__()
        self.model = model
        self.data = data
        self.as_trained: Callable[[], AbstractContextManager[Any]] = nullcontext
        """What a step is made in, as its precision; for log-probabilities that are compared with those of a step."""

    def batches(self) -> Iterator[Any]:
        """The batches from the cursor on, without end, as torch tensors."""
        while True:
            batch = next(self.data)
            yield batch.to("cpu") if isinstance(batch, Batch) else batch

    @abstractmethod
    def forward(self, batch: Any) -> tuple[Tensor, Metrics]:
        """What is made small, the mean over the batch's learned targets, and what else is worth a look.

        Of the metrics "loss" is what the log calls the loss, where that is only a part of what is made small.
        """

    def held_out(self, rows: Any) -> dict[str, float]:
        """The figures of `forward` over all of other data that is like its own (`rows.in_order()`): their means over
        what is learned, as they would be of one batch with all of it. Called in evaluation mode, without gradients."""
        device = next(self.parameters()).device
        sums: dict[str, float] = {}
        n = 0
        for batch in rows.in_order():
            _, metrics = self(batch.to(device))
            n += batch.n_targets
            for name, value in metrics.items():
                if not isinstance(value, Tensor) or value.ndim == 0:
                    sums[name] = sums.get(name, 0.0) + float(value) * batch.n_targets
        return {name: value / n for name, value in sums.items()}

    def updated(self) -> None:
        """Called after each update of the weights, for what a model learns without a gradient."""
        if isinstance(self.model, Decoder):
            self.model.updated()

    def passed_over(self) -> None:
        """Called in its place where a step was not made: what its forward passes noted is to be forgotten."""
        if isinstance(self.model, Decoder):
            self.model.passed_over()

    def get_extra_state(self) -> dict[str, Any]:
        """The data cursor, which travels in `state_dict` with the weights."""
        return dict(self.data.state())

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.data.restore(state)
