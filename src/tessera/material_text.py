"""A text to learn from: documents as shards of tokens, measured in nats a token and in bits a byte."""

from pathlib import Path
from typing import Any

from tessera.corpus import check_data
from tessera.data.prepared import Prepared
from tessera.evaluate.loss import HeldOutLoss, compressor_bits_per_byte, holds_text, text_loss
from tessera.material import VALIDATION, Detailed, Figures, Material, Prompt, noted
from tessera.recipe import Recipe, build_stream, builder, separate_at
from tessera.tokenizers import Tokenizer

EVAL_BATCH = 16
COMPRESSOR_LIMIT = 64_000_000  # bytes; xz -9e takes about a second a megabyte


class Text(Material):
    """Documents, prepared."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    def info(self, recipe: Recipe) -> dict[str, Any]:
        prepared = self.prepared
        own = len(recipe.data.source) != 1 or Path(recipe.data.source[0]).resolve() != prepared.folder.resolve()
        return {
            "data": noted(prepared.folder, own=own),
            "data_sha256": prepared.sha256,
            "data_manifest": prepared.manifest(),
        }

    def check(self, recipe: Recipe, tokenizer: Tokenizer) -> list[str]:
        return check_data(recipe, self.prepared, tokenizer)

    def objective(self, recipe: Recipe, model: Any, tokenizer: Tokenizer) -> Any:
        stream = build_stream(recipe, self.prepared, end_id=tokenizer.end_id)
        return builder(recipe.engine).build_objective(recipe, model, stream)

    def describe(self, recipe: Recipe) -> str:
        counts, train = self.prepared.counts["train"], recipe.train
        per_step = train.batch_size * train.accumulate * recipe.model.context
        epochs = train.steps * per_step / max(counts.n_tokens, 1)
        return f"{train.steps:,} steps of {per_step:,} tokens: {epochs:.2f} epochs of {counts.n_tokens:,} tokens"

    def validate(self, recipe: Recipe, objective: Any, tokenizer: Tokenizer) -> Figures:
        loss = self._loss(recipe, objective, tokenizer, max_tokens=recipe.train.eval_tokens)
        return {VALIDATION: loss.mean} | {f"{VALIDATION}/{name}": each.mean for name, each in loss.sources.items()}

    def measure(self, recipe: Recipe, objective: Any, tokenizer: Tokenizer) -> Detailed:
        """The loss over all held-out text; in bits per byte and beside what compressors need, where the tokens hold all
        of the text."""
        loss = self._loss(recipe, objective, tokenizer, overlap=recipe.train.eval_overlap)
        found: Detailed = {VALIDATION: (loss.mean, {"tokens": loss.n_tokens})}
        for name, each in loss.sources.items():
            found[f"{VALIDATION}/{name}"] = each.mean, {"tokens": each.n_tokens}
        text = self.prepared.validation_text()
        if not holds_text(tokenizer, self.prepared, text):
            return found
        found["bits_per_byte"] = loss.bits_per_byte(len(text)), {"bytes": len(text)}
        if len(text) <= COMPRESSOR_LIMIT:
            for name, bits in compressor_bits_per_byte(text).items():
                found[name] = bits, {"bytes": len(text)}
        return found

    def prompts(self, recipe: Recipe, tokenizer: Tokenizer) -> list[Prompt]:
        return [(prompt, prompt) for prompt in recipe.sample.prompts]

    def _loss(
        self,
        recipe: Recipe,
        objective: Any,
        tokenizer: Tokenizer,
        *,
        max_tokens: int | None = None,
        overlap: float = 0.0,
    ) -> HeldOutLoss:
        """Over the held-out text in windows, its documents apart where they are so in training."""
        return text_loss(
            objective.model,
            self.prepared,
            batch_size=EVAL_BATCH,
            separate_at=separate_at(recipe, tokenizer.end_id),
            max_tokens=max_tokens,
            overlap=overlap,
        )
