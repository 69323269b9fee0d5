"""What the training loop tells: each step to whoever watches, and all that is to be kept to a log."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Outcome = Literal["finished", "interrupted", "out of time"]


class Log(Protocol):
    """What the loop writes to while it runs: `tessera.store.run.Run` is one."""

    def log_metrics(self, step: int, values: dict[str, float]) -> None: ...

    def add_event(
        self,
        step: int,
        kind: str,
        *,
        action: str,
        detail: str,
        cursor: Mapping[str, Any] | None = None,
        drawn: tuple[Mapping[str, Any], list[int]] | None = None,
    ) -> None: ...

    def truncate_after(self, step: int) -> None: ...


@dataclass(frozen=True)
class Progress:
    """One step, for whoever watches."""

    step: int
    steps: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float
    """Of this step alone."""
    validation: float | None = None
    """The newest validation loss, in nats a token."""
    saved: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What else the objective measured."""
    unit: str = "tokens"
    """What `tokens` counts: tokens, pairs, answers."""
    watched: tuple[str, ...] = ()
    """Which of the metrics are looked at while it trains."""

    def values(self) -> dict[str, float]:
        """As they are kept, by name."""
        return {
            **self.metrics,
            "loss": self.loss,
            "lr": self.lr,
            "grad_norm": self.grad_norm,
            "tokens_per_second": self.tokens / self.seconds,
        }
