"""From tokens to text as they come: torn characters are held until they are whole, stop strings end the text.

pieces, until = Pieces(decode, prompt), Until(["\n\n"])
for token in tokens:
    show(until.feed(pieces.feed(token)))
    if until.done:
        break
show(until.feed(pieces.flush()) + until.flush())
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

TORN = "\ufffd"
"""What decoders write for bytes that are no character, and for the first bytes of one."""

MOST = 3
"""Of these that bytes still to come may turn into a character (which has four bytes at most)."""

CONTEXT = 8
"""Tokens before the new ones that are decoded with them: some decoders drop a space at the beginning."""


class Pieces:
    """The text of tokens, piece by piece; the pieces together are the text of all tokens."""

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()):
        self._decode = decode
        self._begin(list(prompt))

    def _begin(self, tokens: list[int]) -> None:
        """Keeps the last tokens as context, from the beginning of a character on; their text was given."""
        starts = (tokens[-n:] for n in range(CONTEXT, CONTEXT - MOST - 1, -1))
        whole = (start for start in starts if not self._decode(start).startswith(TORN))
        self._tokens = next(whole, tokens[-CONTEXT:])
        self._given, self._new = len(self._decode(self._tokens)), 0

    def feed(self, token: int) -> str:
        """What is sure of the text with this token."""
        self._tokens.append(token)
        self._new += 1
        text = self._decode(self._tokens)
        torn = len(text) - len(text.rstrip(TORN))
        if torn and self._new <= MOST:  # some decoders take a torn character for a fault of all bytes around it
            return ""
        sure = len(text) - min(torn, MOST)
        new = text[self._given : sure]
        self._given = max(self._given, sure)
        if not torn:
            self._begin(self._tokens)
        return new

    def flush(self) -> str:
        """The rest, at the end of the tokens."""
        new = self._decode(self._tokens)[self._given :]
        self._given += len(new)
        return new


class Until:
    """Text up to the first of some strings; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held, self.done = tuple(stops), "", False

    def feed(self, text: str) -> str:
        """What can be shown; after a stop string nothing can."""
        if self.done:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.done, shown, self._held = True, self._held[: min(found)], ""
            return shown
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return shown

    def flush(self) -> str:
        """What was held back, where no stop string came."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
