"""Text <-> tokens: bytes, a byte-level BPE trained on the training split, or single nucleotides.

All have a token that no text gives: the separator, which stands before each document (of bytes and BPE the last of the
vocabulary). So a document can hold any characters, and the bytes of the other tokens add up to the bytes of the text.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hybrid.lazy import np
from hybrid.validation import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from experiments.data.config import DataConfig

T = TypeVar("T")

BYTES_VOCABULARY = 257
FILE = "tokenizer.json"
CHUNK = 256
"""Documents that are tokenised together (in parallel by a BPE)."""


class Tokenizer(Protocol):
    """vocab_size counts the separator."""

    vocab_size: int
    separator: int

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        """Tokens of each text, without separators."""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens; separators are left out, and torn characters become U+FFFD."""

    def token_bytes(self) -> NDArray[np.int32]:
        """(vocab_size,) how many bytes of UTF-8 each token stands for; 0 for the separator."""

    def save(self, folder: Path) -> None:
        """Keeps in `folder` what `load` needs."""


class Bytes:
    """Token i is the byte i."""

    vocab_size = BYTES_VOCABULARY
    separator = BYTES_VOCABULARY - 1

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts]

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(token for token in map(int, tokens) if token < 256).decode(errors="replace")

    def token_bytes(self) -> NDArray[np.int32]:
        counts = np.ones(self.vocab_size, np.int32)
        counts[-1] = 0
        return counts

    def save(self, folder: Path) -> None:
        pass


class BytePair:
    """Byte-level BPE (Sennrich et al. 2016; on bytes: Radford et al. 2019), by the `tokenizers` library.

    `vocab_size` is what was asked for; on a very small text fewer tokens are found, and ids are left unused.
    """

    def __init__(self, library: Any, vocab_size: int):
        self._library, self.vocab_size, self.separator = library, vocab_size, vocab_size - 1
        self._bytes = _byte_of_character()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BytePair:
        """The 256 bytes and the vocab_size - 257 merges that shorten `texts` most, greedily."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        library = Tokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator(texts, trainer)
        return cls(library, vocab_size)

    @classmethod
    def load(cls, folder: Path, vocab_size: int) -> BytePair:
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_file(str(folder / FILE)), vocab_size)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        return [np.asarray(found.ids, np.uint16) for found in self._library.encode_batch_fast(list(texts))]

    def decode(self, tokens: Iterable[int]) -> str:
        words = (self._library.id_to_token(token) for token in map(int, tokens) if token != self.vocab_size - 1)
        return bytes(self._bytes[character] for word in words for character in word or "").decode(errors="replace")

    def token_bytes(self) -> NDArray[np.int32]:
        counts = np.zeros(self.vocab_size, np.int32)
        for word, token in self._library.get_vocab().items():
            counts[token] = len(word)  # one character of the library's alphabet for each byte
        return counts

    def save(self, folder: Path) -> None:
        self._library.save(str(folder / FILE))


class Bases:
    """Single nucleotides, with the ids of HyenaDNA's published tokenizer: seven marks, then A C G T N.

    A letter that is none of the five is refused (ConfigError): experiments.data.fasta turns the ambiguous ones into N.
    """

    names = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
    vocab_size = len(names)
    separator = names.index("[SEP]")
    mask = names.index("[MASK]")
    first = names.index("A")
    """The ids of A, C, G, T are first, first + 1, ..."""
    unscored = tuple(i for i, name in enumerate(names) if name not in ("A", "C", "G", "T"))

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        table = np.full(256, self.vocab_size, np.uint16)
        for i, name in enumerate(self.names[self.first :]):
            table[ord(name)] = self.first + i
        found = []
        for text in texts:
            tokens = table[np.frombuffer(text.encode("latin-1", "replace"), np.uint8)]
            if tokens.size and tokens.max() == self.vocab_size:
                letter = text[int(tokens.argmax())]
                raise ConfigError("data.tokenizer", f"'bases' cannot read {letter!r} (allowed: A, C, G, T, N)")
            found.append(tokens)
        return found

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(self.names[token] for token in map(int, tokens) if self.first <= token < self.vocab_size)

    def token_bytes(self) -> NDArray[np.int32]:
        """1 for a base that is known, so that bits per byte are bits per base."""
        return np.where(np.isin(np.arange(self.vocab_size), self.unscored), 0, 1).astype(np.int32)

    def save(self, folder: Path) -> None:
        pass


@dataclass(frozen=True)
class Kind:
    """A row of the table: how a tokenizer is made from training texts, how it is read back, which code made it."""

    vocab_size: Callable[[DataConfig], int]
    separator: Callable[[DataConfig], int]
    train: Callable[[Iterable[str], int], Tokenizer]
    load: Callable[[Path, int], Tokenizer]
    version: Callable[[], str]
    mask: int | None = None
    """The token for masked language modelling, where the vocabulary has one."""
    unscored: tuple[int, ...] = ()
    """Tokens that are never predicted."""


KINDS: dict[str, Kind] = {
    "bytes": Kind(
        vocab_size=lambda config: BYTES_VOCABULARY,
        separator=lambda config: BYTES_VOCABULARY - 1,
        train=lambda texts, vocab_size: Bytes(),
        load=lambda folder, vocab_size: Bytes(),
        version=lambda: "1",
    ),
    "bpe": Kind(
        vocab_size=lambda config: config.vocab_size or 0,
        separator=lambda config: (config.vocab_size or 0) - 1,
        train=BytePair.train,
        load=BytePair.load,
        version=lambda: "1+" + importlib.metadata.version("tokenizers"),
    ),
    "bases": Kind(
        vocab_size=lambda config: Bases.vocab_size,
        separator=lambda config: Bases.separator,
        train=lambda texts, vocab_size: Bases(),
        load=lambda folder, vocab_size: Bases(),
        version=lambda: "1",
        mask=Bases.mask,
        unscored=Bases.unscored,
    ),
}


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Lists of at most `size` items."""
    source = iter(items)
    while part := list(islice(source, size)):
        yield part


def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable Latin-1 characters are themselves, other bytes start at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
