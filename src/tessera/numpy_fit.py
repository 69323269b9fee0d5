"""The loop behind `LM.fit`, on NumPy alone."""

from collections.abc import Callable, Iterator

from tessera.config import Spec, build
from tessera.data.rows import DocumentRows
from tessera.optim.schedule import SCHEDULES
from tessera.scratch.decoder import Decoder
from tessera.scratch.gradients import Batch
from tessera.scratch.optimizer import OPTIMIZERS
from tessera.scratch.train import Progress, Trainer


def train(
    model: Decoder,
    rows: DocumentRows,
    *,
    steps: int,
    optimizer: Spec,
    schedule: str | Spec,
    lr: float,
    clip: float | None,
    seed: int,
    watch: Callable[[int, float, int], None],
) -> None:
    """Make `steps` updates; `watch(step, loss, tokens)` is called after each."""

    def told(progress: Progress) -> None:
        watch(progress.step, progress.loss, progress.tokens)

    Trainer(
        model=model,
        optimizer=build(OPTIMIZERS, optimizer, path="optimizer", params=model.parameters, lr=lr),
        batches=_batches(rows),
        steps=steps,
        schedule=build(SCHEDULES, schedule, path="schedule"),
        clip=clip,
        seed=seed,
        watch=told,
    ).run()


def _batches(rows: DocumentRows) -> Iterator[Batch]:
    while True:
        batch = next(rows)
        yield batch.inputs_BT, batch.targets_BT, batch.documents_BT
