"""GPT-2's notation of byte-level BPE, in which each letter stands for a byte."""

from __future__ import annotations

import functools
from collections.abc import Callable

TokenPiece = str | bytes | None
Encode = Callable[[str], list[int]]


def from_byte_level(piece: str) -> TokenPiece:
    """Decode GPT-2's notation, in which each letter is a byte."""
    values = _values()
    try:
        return text_or_bytes(bytes(values[letter] for letter in piece))
    except KeyError:  # a token that was added to the vocabulary as plain text
        return piece


def text_or_bytes(data: bytes) -> str | bytes:
    """Text if the bytes are UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


@functools.cache
def byte_level_letters() -> tuple[str, ...]:
    """Letter of each byte in GPT-2's notation: printable Latin-1 is unchanged, the rest counts up from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


@functools.cache
def _values() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(byte_level_letters())}


def byte_level_encode(
    vocab: dict[str, int], merges: list[tuple[str, str]], split: str, *, ignore_merges: bool, nfc: bool
) -> Encode:
    """Build a function from text to ids.

    Args:
        vocab: piece -> id.
        merges: pairs of pieces of `vocab`, whose unions are pieces too.
        split: the pattern of the words.
        ignore_merges: whether a word that is a piece needs no merges.
        nfc: whether the text is normalised first.
    """
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    model = models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)
    tokenizer = tokenizers.Tokenizer(model)
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(tokenizers.Regex(split), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
