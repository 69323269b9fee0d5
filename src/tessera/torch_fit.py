"""The loop behind `LM.fit`, on PyTorch: that of every run."""

from collections.abc import Callable

from tessera.config import Spec, build, check
from tessera.data.rows import DocumentRows
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.schedule import SCHEDULES
from tessera.train.progress import Progress
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer


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

    objective = NextToken(model=model, data=rows)
    decay = optimizer.settings.get("weight_decay")
    Trainer(
        objective=objective,
        optimizer=build(OPTIMIZERS, optimizer, path="optimizer", params=groups(objective, decay), lr=lr),
        schedule=build(SCHEDULES, schedule, path="schedule"),
        settings=check(TrainSettings, {"steps": steps, "batch_size": rows.batch_size, "clip": clip}),
        watch=told,
        device=model.head_weight.device,
    ).run()
    model.eval()
