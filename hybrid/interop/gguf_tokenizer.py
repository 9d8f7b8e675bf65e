"""The tokenizer that a GGUF file carries, rebuilt with the `tokenizers` library.

tokenizer = read_tokenizer(GgufFile(path).metadata)
tokenizer.encode("Once upon").ids
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from hybrid.validation import ConfigError

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words and numbers as Llama 3's tokenizer cuts them; GPT-2's are in the library."""


class TokenType(IntEnum):
    """What llama.cpp says of a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def _words(name: str) -> list[Any]:
    """The cuts of a text before byte pairs are merged, by llama.cpp's name for them."""
    from tokenizers import Regex, pre_tokenizers

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    table: dict[str, list[Any]] = {
        "gpt-2": [gpt2],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"), bytes_alone],
    }
    if name not in table:
        raise ConfigError("tokenizer.ggml.pre", f"{name!r} is not allowed (allowed: {', '.join(table)})")
    return table[name]


def check_tokenizer(metadata: Mapping[str, Any]) -> None:
    """ConfigError where the file carries no tokenizer that is read here."""
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise ConfigError("tokenizer.ggml.model", f"{model!r} is not allowed; only 'gpt2' (byte-level BPE) is read")
    for name in ("tokens", "merges", "token_type"):
        if f"tokenizer.ggml.{name}" not in metadata:
            raise ConfigError(f"tokenizer.ggml.{name}", "is not in the file")


def read_tokenizer(metadata: Mapping[str, Any]) -> Any:
    """A `tokenizers.Tokenizer`. Control tokens are found in texts, and are left out when tokens are decoded.

    Raises ConfigError for a tokenizer of another make.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    check_tokenizer(metadata)
    words: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    name = metadata.get("tokenizer.ggml.pre", "gpt-2")
    steps = _words(name)
    # Llama 3 takes a word that is a token as it is, even where no merges lead to it.
    model = models.BPE({word: i for i, word in enumerate(words)}, merges, ignore_merges=name == "llama-bpe")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    kinds = {TokenType.CONTROL: tokenizer.add_special_tokens, TokenType.USER_DEFINED: tokenizer.add_tokens}
    for kind, add in kinds.items():
        add([AddedToken(word, normalized=False) for word, of in zip(words, types, strict=True) if of == kind])
    begin = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token", False) and begin is not None:
        first = words[begin]
        tokenizer.post_processor = processors.TemplateProcessing(single=[first, "$A"], special_tokens=[(first, begin)])
    return tokenizer


def end_tokens(metadata: Mapping[str, Any]) -> frozenset[int]:
    """Tokens after which a text is over."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = (metadata.get(f"tokenizer.ggml.{name}") for name in names)
    return frozenset(token for token in found if token is not None)
