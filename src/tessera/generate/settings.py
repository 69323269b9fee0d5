"""The settings of an answer: how its tokens are chosen, and when it ends."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from tessera.config import Settings, check
from tessera.errors import SettingError


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Mirostat(Settings):
    """Mirostat 2.0 keeps the surprise of the text near a target (Basu et al. 2021); it replaces the filters."""

    tau: float = Field(default=5.0, gt=0.0)
    """The target: bits of surprise for each token."""
    eta: float = Field(default=0.1, gt=0.0)
    """How fast the bound follows."""


class Guidance(Settings):
    """Classifier-free guidance: away from what a negative prompt would give."""

    scale: float = Field(default=1.5, ge=0.0)
    """1 is off; above 1 leads away from the negative prompt."""
    negative_prompt: str = ""
    """The prompt to be led away from; empty is the beginning of a document."""


class Sampling(Settings):
    """How to choose the tokens of an answer, and when it ends. The default draws from the model's own distribution."""

    temperature: float = Field(1.0, ge=0.0)
    """Divides the logits: below 1 is bolder, above 1 is more varied, 0 always takes the most probable token."""
    top_k: int | None = Field(None, ge=1)
    """Keep the k most probable tokens."""
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    """Keep the fewest most probable tokens whose probabilities add up to p."""
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    """Keep the tokens at least p times as probable as the most probable one."""
    typical: float | None = Field(None, gt=0.0, le=1.0)
    """Keep the fewest tokens of about the expected surprise whose probabilities add up to this."""
    mirostat: Mirostat | None = None
    """Keep the surprise of the text near a target, in place of the filters above."""
    repetition_penalty: float = Field(1.0, gt=0.0)
    """Above 1 makes tokens that have occurred, in the prompt too, less probable; 1 is off."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that the answer has; 0 is off."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token each time that the answer has it; 0 is off."""
    no_repeat_ngram: int | None = Field(None, ge=1)
    """No run of n tokens, those of the prompt too, occurs twice."""
    logit_bias: dict[int, float] = Field(default_factory=dict)
    """Added to the logits of these token ids; -100 forbids one in practice."""
    guidance: Guidance | None = None
    """Lead away from what a negative prompt would give."""
    regex: str | None = None
    """The whole answer matches this pattern."""
    json_schema: dict[str, Any] | None = None
    """The whole answer is JSON that is valid under this schema."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """The same seed gives the same text; none is a new one each time."""
    n: int = Field(1, ge=1)
    """How many answers."""
    best_of: int | None = Field(None, ge=1)
    """Make so many answers and give the n of the highest mean log-probability."""
    logprobs: int | None = Field(None, ge=0)
    """Tell each token's log-probability, and the k most probable ones at its place."""
    min_tokens: int = Field(0, ge=0)
    """No end token before so many tokens."""
    max_tokens: int = Field(200, ge=0)
    """The most tokens to add."""
    ignore_eos: bool = False
    """Never draw an end token."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple)] = ()
    """Texts that end the answer; they are not a part of it."""

    def __init__(self, **settings: Any) -> None:
        check(type(self), settings)  # here for its SettingError: one line, with the name, the value and what is right
        super().__init__(**settings)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # inside other settings it is checked once

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.best_of is not None and self.best_of < self.n:
            raise SettingError("best_of", self.best_of, f"at least n = {self.n}")
        if self.min_tokens > self.max_tokens:
            raise SettingError("min_tokens", self.min_tokens, f"at most max_tokens = {self.max_tokens}")
        if self.regex is not None and self.json_schema is not None:
            raise SettingError("regex", self.regex, "none where json_schema is set")
        if self.ignore_eos and (self.regex is not None or self.json_schema is not None):
            raise SettingError("ignore_eos", True, "false where the answer must match a pattern, which ends it")
        filters = {name: getattr(self, name) for name in ("top_k", "top_p", "min_p", "typical")}
        if self.mirostat is not None:
            for name, value in filters.items():
                if value is not None:
                    raise SettingError(name, value, "none where mirostat is set, which replaces the filters")
            if self.temperature == 0.0:
                raise SettingError("temperature", 0.0, "more than 0 where mirostat is set")
        return self

    @property
    def looks_back(self) -> bool:
        """Whether the tokens before matter to the logits."""
        penalties = (self.repetition_penalty != 1.0, self.presence_penalty != 0.0, self.frequency_penalty != 0.0)
        return any(penalties) or self.no_repeat_ngram is not None
