"""How good a model is, in numbers that compare across tokenizers and in ways that people feel."""
