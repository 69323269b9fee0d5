"""A text and settings with which a whole run takes a second."""

TEXT = "".join(f"{i}: the quick brown fox jumps over {i * i % 87} lazy dogs\n" for i in range(120))
SMALL = (
    "tokenizer=byte",
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.context=16",
    "train.batch_size=2",
    "train.steps=6",
    "train.save_every=2",
    "train.eval_every=3",
    "train.eval_tokens=64",
    "train.keep=3",
    "train.threads=1",
    "train.device=cpu",
    "schedule.warmup=1",
    "sample.sampling.max_tokens=8",
)
EXACT = (*SMALL, "train.precision=fp32")
"""Not in a precision that a measurement chooses: for runs that are compared with one another."""
