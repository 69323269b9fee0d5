"""Stop texts in a stream of pieces: found wherever the pieces are cut, and never let through.

The first stop text to be complete ends the text at its own beginning. Until then whatever may still become one is
held back.
"""

from collections.abc import Sequence


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop text that is complete first begins (the longest one, if two end at the same place)."""
    found = ((at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0)
    return min(found, default=(0, None))[1]


def n_held(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` are the beginning of a stop text."""
    longest = min(len(text), max((len(stop) for stop in stops), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in stops)), 0)


class StopFilter:
    """Takes pieces of text, gives back what is certainly not a part of a stop text.

    A piece is any number of whole characters: `Tokenizer.stream` keeps the bytes of a character together.

    >>> stream = StopFilter(["END"])
    >>> [stream.push(piece) for piece in ["one E", "N", "E EN", "D two"]], stream.stopped
    (['one ', '', 'ENE ', ''], True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.found: str | None = None
        """The stop text that ended it."""
        self._held = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop text is complete."""
        return self.found is not None

    def push(self, piece: str) -> str:
        """What may be shown now; nothing more once `stopped`."""
        if not self.stops:
            return piece
        if self.stopped:
            return ""
        text = self._held + piece
        at = find_stop(text, self.stops)
        if at is None:
            at = len(text) - n_held(text, self.stops)
            self._held = text[at:]
        else:
            # Of those that begin there the shortest was complete first.
            self.found = min((stop for stop in self.stops if text.startswith(stop, at)), key=len)
            self._held = ""
        return text[:at]

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held
