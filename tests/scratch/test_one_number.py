"""The chapter docs/one-number.md says what the code does: its words, its shapes and its values."""

import re

import numpy as np
from tools.one_number import PAGE, chapter

NUMBER = re.compile(r"-?\d+\.\d+")


def test_the_page_is_what_the_code_does() -> None:
    """Another processor may round the last digit that is shown the other way."""
    written, made = PAGE.read_text(encoding="utf-8"), chapter()
    assert NUMBER.sub("0", written) == NUMBER.sub("0", made), "run python -m tools.one_number"
    numbers = [np.array([float(each) for each in NUMBER.findall(text)]) for text in (written, made)]
    np.testing.assert_allclose(*numbers, rtol=0, atol=1.01e-4)
