"""How text becomes tokens and back: its bytes, or those of a tokenizer."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import tokenizers

UNSEEN = "\N{REPLACEMENT CHARACTER}"


class Tokens(NamedTuple):
    """Text as tokens and back.

    unit:       what one is called.
    vocabulary: how many there are.
    read:       UTF-8 as an array of integers; a character that is cut off is left out.
    encode:     text as a list.
    decode:     a list as text.
    """

    unit: str
    vocabulary: int
    read: Callable[[np.ndarray], np.ndarray]
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


def as_text(tokens: Sequence[int]) -> str:
    """Bytes as text; what is no UTF-8 or cannot be shown becomes a replacement character."""
    text = bytes(np.asarray(tokens, np.uint8)).decode("utf-8", errors="replace")
    return "".join(c if c.isprintable() or c in "\n\t" else UNSEEN for c in text)


BYTES = Tokens("byte", 256, lambda data: data, lambda text: list(text.encode()), as_text)


def of_tokenizer(tokenizer: "tokenizers.Tokenizer") -> Tokens:
    """The tokens of a `tokenizer.json`, without those that stand for a beginning or an end."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    def read(data: np.ndarray) -> np.ndarray:
        return np.asarray(encode(data.tobytes().decode("utf-8", errors="ignore")), np.int32)

    def decode(tokens: Sequence[int]) -> str:
        return tokenizer.decode(list(tokens))

    return Tokens("token", tokenizer.get_vocab_size(), read, encode, decode)
