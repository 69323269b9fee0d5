"""The settings of the training loop."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from tessera.config import Settings, Spec, build, check_spec
from tessera.optim.schedule import RAMPS
from tessera.train.nonfinite import OnNonfinite, OnSpike

Choice = Literal["auto", "fp32", "tf32", "bf16", "fp16", "fp8", "int8"]
"""Of the numbers that are computed in: `tessera.train.precision`."""


class TrainSettings(Settings):
    """How long, how much at a time, and how often to look up from it."""

    steps: PositiveInt = 1000
    """Updates of the weights in all; a resumed run counts from its first start."""
    batch_size: PositiveInt = 16
    """Windows in a micro-batch."""
    accumulate: PositiveInt = 1
    """Micro-batches in an update."""
    clip: PositiveFloat | None = 1.0
    """The largest global gradient norm; none switches clipping off."""
    eval_every: NonNegativeInt = 250
    """Steps between validations; 0 validates at the end only."""
    eval_tokens: PositiveInt | None = 65_536
    """Validation tokens used while training, of a text; none for all, as the final validation always does. Held-out
    examples are always read whole."""
    eval_overlap: float = Field(default=0.0, ge=0, le=0.9)
    """Of the final validation: the share of each window that the one before it has predicted, and that is only read, so
    that no token is predicted from less. 0: windows side by side, as in training. It takes 1 / (1 - share) times as
    long."""
    sample_every: NonNegativeInt = 0
    """Steps between samples; 0 for none while training."""
    detail_every: NonNegativeInt = 10
    """Steps between records of what has a number for each part, as the load of each expert; 0 for none."""
    save_every: NonNegativeInt = 250
    """Steps between checkpoints; 0 saves at the end only. It always saves at the end and when interrupted."""
    keep: PositiveInt = 2
    """Checkpoints to keep, beside the best and the one resumed from."""
    on_nonfinite: OnNonfinite = "stop"
    """Where a loss or gradient is NaN or infinite: stop, skip the step's batches, or rewind to the newest checkpoint
    and go on with the batches that follow. Nothing is ever updated by such a step."""
    on_spike: OnSpike = "record"
    """Where the loss jumps up: off, record (and learn from it all the same), skip, or rewind."""
    spike_threshold: PositiveFloat = 8.0
    """How far above the losses before it, in standard deviations of their noise."""
    max_passed_over: NonNegativeInt = 10
    """So many skips and rewinds within 1,000 steps are put up with; one more stops the run."""
    max_minutes: PositiveFloat | None = None
    """Save and stop after this many minutes, to be resumed later."""
    finish_minutes: PositiveFloat | None = None
    """Be done within this many minutes of updates: where the clock is ahead of the steps the schedule follows the
    clock, so that the rate has come down when the time is up. Only then is a run not the same on every machine."""
    precision: Choice = "auto"
    """What products are computed in: fp32, tf32, bf16, fp16, fp8, int8, or auto, which takes the fastest in a
    measurement at the start, of those (never fp8) with which the loss was within one percent of fp32's, and stays with
    it when the run is resumed. Weights are fp32 in any case."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the blocks with torch.compile: a minute at the start, for steps that are faster on a GPU. auto: there."""
    checkpointing: PositiveInt | Literal["selective"] | None = None
    """Keep the activations between so many blocks alone, and make the others again for the backward pass: less memory,
    a third more time. "selective" keeps the results of products and attention, and makes the cheap rest again: a third
    less memory, a few percent more time. None keeps all."""
    prefetch: NonNegativeInt = 2
    """Batches made ahead on a thread; 0 makes each when it is needed."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """The decay of an average of the weights, such as 0.999, which is then validated, sampled from and saved."""
    batch_ramp: Spec | None = None
    """How the batch grows to batch_size over the first steps: linear or doubling, with start and steps."""
    context_ramp: Spec | None = None
    """The same for the length of rows: each batch in shorter rows of as many tokens, of a divisor of model.context."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share a model: each has a copy of it (ddp), or a part of it and of the optimizer's state
    (fsdp), for one that does not fit a device. One process alone needs neither."""
    workers: PositiveInt = 1
    """Processes of the NumPy engine that share each batch; those of the torch engine are counted by --devices."""
    device: str = "auto"
    """auto takes CUDA where there is one; else cpu, cuda, cuda:1, mps."""
    threads: NonNegativeInt = Field(default=0)
    """CPU threads of a process; 0 for all cores. Bit-for-bit resume needs the same number."""

    @field_validator("batch_ramp", "context_ramp")
    @classmethod
    def _ramp(cls, spec: Spec | None, info: ValidationInfo) -> Spec | None:
        if spec is None:
            return None
        spec = check_spec(RAMPS, spec, f"train.{info.field_name}")
        build(RAMPS, spec, path=f"train.{info.field_name}")
        return spec

    def ramp(self, name: Literal["batch_ramp", "context_ramp"]) -> Callable[[int, int], int]:
        """The size at a step, from (step, full size); the full size where there is no ramp."""
        spec = getattr(self, name)
        return build(RAMPS, spec, path=f"train.{name}") if spec is not None else lambda step, full: full
