"""What a run learns from and is measured with, as the job sees it: a text, or examples.

    Text       documents as shards of tokens                     (`tessera.material_text`)
    Examples   conversations, preferences or tasks, one by one   (`tessera.material_examples`)

The first process makes it in the run's folder; whoever opens the run again finds it there, proved to be the same.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from tessera.recipe import Recipe
from tessera.tokenizers import Tokenizer

Figures = dict[str, float]
Detailed = dict[str, tuple[float, dict[str, Any]]]
"""Figures by name, each with what it was measured on."""
Prompt = tuple[str, str | list[int]]
"""What is shown of a prompt to sample from, and what the engine is given."""
VALIDATION = "validation_loss"
"""The figure that decides which checkpoint is the best."""


class Material(ABC):
    """What is learned from, and what is held out."""

    validates_all: ClassVar[bool] = False
    """Whether `validate` gives what `measure` gives."""

    @abstractmethod
    def info(self, recipe: Recipe) -> dict[str, Any]:
        """What a run notes of it: `data` (its folder, as seen from the run), `data_sha256`, `data_manifest`."""

    @abstractmethod
    def check(self, recipe: Recipe, tokenizer: Tokenizer) -> list[str]:
        """Lines worth saying; an error where the recipe asks for what is not in it."""

    def fitted(self, recipe: Recipe) -> Recipe:
        """The recipe with what follows from how much there is."""
        return recipe

    @abstractmethod
    def objective(self, recipe: Recipe, model: Any, tokenizer: Tokenizer) -> Any:
        """What is learned, with its batches, for the engine that computes: of torch an `Objective`.

        The model is what it is before the run.
        """

    @abstractmethod
    def describe(self, recipe: Recipe) -> str:
        """How much of it the run will read."""

    def longest(self, recipe: Recipe) -> int:
        """The most tokens that a row of a batch has."""
        return recipe.model.context

    @abstractmethod
    def validate(self, recipe: Recipe, objective: Any, tokenizer: Tokenizer) -> Figures:
        """The figures on held-out data while training, VALIDATION among them."""

    @abstractmethod
    def measure(self, recipe: Recipe, objective: Any, tokenizer: Tokenizer) -> Detailed:
        """The figures on all that is held out."""

    def measures_before(self, recipe: Recipe) -> bool:
        """Whether they are worth having of the model before it learns."""
        return recipe.base is not None

    @abstractmethod
    def prompts(self, recipe: Recipe, tokenizer: Tokenizer) -> list[Prompt]:
        """What samples begin with."""


def noted(folder: Path, *, own: bool) -> str:
    """A folder of data as a run notes it: one of its own by its name, so that the run may be moved."""
    return folder.name if own else str(folder.resolve())
