"""Two sets of weights, one model: those that are trained, and averages of them, which are the better ones to use.

Whoever keeps such averages (`ema.WeightAverage`, `schedule_free.ScheduleFreeAdamW`) is an `Averaged`, and says by it
which of the two is in the model. The trained ones are there while the model learns; the averaged ones are there for
all else: validation, samples, what a checkpoint holds under the model's own names, the model when the run is over.
Putting the averages in and out again gives the trained weights back bit for bit, so that looking does not change what
is learned.

A state that is saved while the averages are in holds the trained weights beside them, and one that is loaded knows
that they are in: `swap_out` goes on from there.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager


class Averaged(ABC):
    """Keeps averages of a model's weights, and puts them in the place of the trained ones and out again."""

    @property
    @abstractmethod
    def swapped(self) -> bool:
        """Whether the averages are in the model."""

    @abstractmethod
    def swap_in(self) -> None:
        """Put the averages into the model; nothing happens if they are there."""

    @abstractmethod
    def swap_out(self) -> None:
        """Put the trained weights back, bit for bit; nothing happens if they are there."""

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The averages in the model for as long as the block runs; after it what was there before.

        Enter it outside of `torch.inference_mode`, whose tensors cannot be learned from later.
        """
        before = self.swapped
        self.swap_in()
        try:
            yield
        finally:
            if not before:
                self.swap_out()
