"""Vocabularies of language models, read from their tokenizer files."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oxe_curate.errors import ConfigError

TokenPiece = str | bytes | None
Encode = Callable[[str], list[int]]

_EXPECTED = "tokenizer.json, tokenizer.model, *.model*, vocab.json with merges.txt"

_RESERVED = re.compile(r"[<\[]\|?(reserved_special_token_|reserved_?|unused_?|extra_|control_)\d+\|?[>\]]")
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")

# How the published tokenizers split a text into words before merging.
_LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2_SPLIT = _LLAMA_3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

_LLAMA_3_RANKS = 128_000
_LLAMA_3_SPECIAL = 256
# Offsets from 128,000 that a layout of Llama 3 to 3.3 uses: begin and end of text, padding, step, headers, end of
# message and of turn, Python, image. The rank file does not tell which layout its model has.
_LLAMA_3_USED = frozenset({0, 1, 4, 5, 6, 7, 8, 9, 10, 11})


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of a language model.

    Attributes:
        size: number of tokens without added tokens, Hugging Face's `tokenizer.vocab_size`, from which OpenVLA's rule
            counts down: 32000 for Llama 2, 128000 for Llama 3, 151643 for Qwen 2.5.
        pieces: text of each id, including added tokens, so it may be longer than `size`; bytes if a token is not
            valid UTF-8 (byte tokens, parts of a character); None for an id without a token.
        special: ids that are not ordinary text: control, unknown, unused and added tokens.
        reserved: those of `special` without a known published use, ascending.
        sha256: of the file's bytes. For several files: of the lines "<name> <sha256>", sorted by name, each followed
            by a newline (the output of `sha256sum` with its columns swapped and one space).
        source: the file or folder, for messages.
        encode: text to ids, without a beginning-of-sequence token. Raises ConfigError if the files do not tell how a
            text is split into words.
    """

    size: int
    pieces: tuple[TokenPiece, ...] = field(repr=False)
    special: frozenset[int] = field(repr=False)
    reserved: tuple[int, ...] = field(repr=False)
    sha256: str
    source: str
    encode: Encode = field(repr=False)

    def piece(self, token_id: int) -> TokenPiece:
        """Return the piece of an id, or None."""
        return self.pieces[token_id] if 0 <= token_id < len(self.pieces) else None


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Read a tokenizer from a folder or one of its files; the format is detected from the contents.

    Supported are Hugging Face's tokenizer.json, SentencePiece models, tiktoken rank files (Llama 3's tokenizer.model is
    one) and vocab.json with merges.txt (and added_tokens.json). In a folder, the first of tokenizer.json,
    tokenizer.model, *.model* and vocab.json is read.

    Raises:
        ConfigError: file not found, another format, or an ambiguous folder.
    """
    source, *others = candidates(path)
    rivals = [p.name for p in others if p.name != "vocab.json"]
    if rivals and source.name not in ("tokenizer.json", "tokenizer.model"):
        names = ", ".join([source.name, *rivals])
        raise ConfigError(f"{path}: contains several tokenizers ({names}); give one of the files")
    try:
        if source.name == "vocab.json":
            return _read_vocab_and_merges(source.parent)
        data = source.read_bytes()
    except OSError as error:
        raise ConfigError(f"{source}: cannot read: {error.strerror or error}") from None
    if data.lstrip()[:1] == b"{":
        return _read_tokenizer_json(data, source)
    if _RANK_LINE.match(data):
        return _read_ranks(data, source)
    return _read_sentencepiece(data, source)


def candidates(path: str | Path) -> list[Path]:
    """Return the tokenizer files at a path, the one that `read_vocabulary` reads first.

    Raises:
        ConfigError: there is none; the message lists the expected files.
    """
    path = Path(path)
    if path.is_dir():
        names = ["tokenizer.json", "tokenizer.model"]
        names += sorted(p.name for p in path.glob("*.model*") if p.name != "tokenizer.model")
        names += ["vocab.json"] if (path / "merges.txt").is_file() else []
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise ConfigError(f"{path}: no tokenizer found; expected {_EXPECTED}")
        return found
    if path.name in ("vocab.json", "merges.txt", "added_tokens.json"):
        path = path.with_name("vocab.json")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected a tokenizer's folder or file: {_EXPECTED}")
    return [path]


def _read_tokenizer_json(data: bytes, source: Path) -> Vocabulary:
    import tokenizers

    try:
        content = json.loads(data)
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the Rust library raises plain Exception
        hint = "" if source.name == "tokenizer.json" else f" Expected {_EXPECTED}"
        raise ConfigError(f"{source}: not a Hugging Face tokenizer: {error}.{hint}") from None
    added = {int(token["id"]): str(token["content"]) for token in content.get("added_tokens", [])}
    decoder = json.dumps([content.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")])
    if '"ByteLevel"' in decoder:
        read: Callable[[str], TokenPiece] = _from_byte_level
    else:
        read = _from_sentencepiece
    return _vocabulary(
        tokenizer.get_vocab(with_added_tokens=True),
        added,
        read,
        size=tokenizer.get_vocab_size(with_added_tokens=False),
        sha256=hashlib.sha256(data).hexdigest(),
        source=source,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
    )


def _read_vocab_and_merges(folder: Path) -> Vocabulary:
    names = [n for n in ("vocab.json", "merges.txt", "added_tokens.json") if (folder / n).is_file()]
    if names[:2] != ["vocab.json", "merges.txt"]:
        raise ConfigError(f"{folder}: expected both vocab.json and merges.txt, found only {', '.join(names)}")
    data = {name: (folder / name).read_bytes() for name in names}
    listing = "".join(f"{name} {hashlib.sha256(data[name]).hexdigest()}\n" for name in sorted(names))
    try:
        vocab: dict[str, int] = json.loads(data["vocab.json"])
        added: dict[str, int] = json.loads(data.get("added_tokens.json", b"{}"))
        lines = data["merges.txt"].decode().splitlines()
        pairs = [line.partition(" ") for line in lines if line and not line.startswith("#version")]
        merges = [(left, right) for left, _, right in pairs]
        if not all(isinstance(i, int) for i in (*vocab.values(), *added.values())):
            raise ValueError("expected {piece: id}")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{folder}: damaged vocab.json, merges.txt or added_tokens.json: {error}") from None

    @functools.cache
    def build() -> Encode:
        return _byte_level_encode(vocab, merges, _split_of(folder), ignore_merges=False, nfc=True)

    return _vocabulary(
        {**vocab, **added},
        {i: piece for piece, i in added.items()},
        _from_byte_level,
        size=len(vocab),
        sha256=hashlib.sha256(listing.encode()).hexdigest(),
        source=folder,
        encode=lambda text: build()(text),
    )


def _read_sentencepiece(data: bytes, source: Path) -> Vocabulary:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        loaded = bool(data) and processor.LoadFromSerializedProto(data)
    except RuntimeError:
        loaded = False
    if not loaded:
        raise ConfigError(f"{source}: not a SentencePiece model, tiktoken ranks or JSON; expected {_EXPECTED}")
    size = processor.GetPieceSize()
    special = frozenset(
        i for i in range(size) if processor.IsControl(i) or processor.IsUnknown(i) or processor.IsUnused(i)
    )
    pieces = [processor.IdToPiece(i) for i in range(size)]
    return Vocabulary(
        size=size,
        pieces=tuple(piece if i in special else _from_sentencepiece(piece) for i, piece in enumerate(pieces)),
        special=special,
        reserved=tuple(i for i in sorted(special) if _RESERVED.fullmatch(pieces[i])),
        sha256=hashlib.sha256(data).hexdigest(),
        source=str(source),
        encode=processor.EncodeAsIds,
    )


def _read_ranks(data: bytes, source: Path) -> Vocabulary:
    """Read tiktoken ranks: lines of a base64 piece and its id."""
    ranks: dict[bytes, int] = {}
    try:
        for line in data.splitlines():
            if line:
                piece, rank = line.split(b" ")
                ranks[base64.b64decode(piece, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise ConfigError(f"{source}: damaged tiktoken rank file at line {len(ranks) + 1}: {error}") from None
    size = len(ranks)
    if set(ranks.values()) != set(range(size)):
        raise ConfigError(f"{source}: damaged tiktoken rank file: the {size} ranks do not count from 0 to {size - 1}")
    is_llama_3 = size == _LLAMA_3_RANKS
    special = range(size, size + _LLAMA_3_SPECIAL) if is_llama_3 else range(0)
    pieces: list[TokenPiece] = [_text_or_bytes(piece) for piece in sorted(ranks, key=ranks.__getitem__)]

    @functools.cache
    def build() -> Encode:
        if not is_llama_3:
            raise ConfigError(
                f"{source}: a rank file of {size} ranks does not tell how a text is split into words; "
                f"only Llama 3's 128,000 ranks are supported. Use the model's tokenizer.json instead"
            )
        letters = _byte_level_letters()
        spelled = {piece: "".join(letters[byte] for byte in piece) for piece in ranks}
        vocab = {spelled[piece]: rank for piece, rank in ranks.items()}
        return _byte_level_encode(vocab, _merges_of(ranks, spelled), _LLAMA_3_SPLIT, ignore_merges=True, nfc=False)

    return Vocabulary(
        size=size,
        pieces=(*pieces, *(f"<|special_{i - size}|>" for i in special)),
        special=frozenset(special),
        reserved=tuple(i for i in special if i - size not in _LLAMA_3_USED),
        sha256=hashlib.sha256(data).hexdigest(),
        source=str(source),
        encode=lambda text: build()(text),
    )


def _vocabulary(
    ids: dict[str, int],
    added: dict[int, str],
    read: Callable[[str], TokenPiece],
    *,
    size: int,
    sha256: str,
    source: Path,
    encode: Encode,
) -> Vocabulary:
    """Build the vocabulary of the two Hugging Face formats."""
    pieces: list[TokenPiece] = [None] * (max(ids.values(), default=-1) + 1)
    for piece, i in ids.items():
        pieces[i] = added[i] if i in added else read(piece)
    reserved = sorted(i for i, piece in added.items() if _RESERVED.fullmatch(piece))
    return Vocabulary(size, tuple(pieces), frozenset(added), tuple(reserved), sha256, str(source), encode)


def _from_sentencepiece(piece: str) -> TokenPiece:
    """Decode SentencePiece's notation: U+2581 is a space, <0x0A> a byte."""
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ")


def _from_byte_level(piece: str) -> TokenPiece:
    """Decode GPT-2's notation, in which each letter is a byte."""
    values = _byte_level_values()
    try:
        return _text_or_bytes(bytes(values[letter] for letter in piece))
    except KeyError:  # a token that was added to the vocabulary as plain text
        return piece


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


@functools.cache
def _byte_level_letters() -> tuple[str, ...]:
    """Letter of each byte in GPT-2's notation: printable Latin-1 is unchanged, the rest counts up from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


@functools.cache
def _byte_level_values() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(_byte_level_letters())}


def _byte_level_encode(
    vocab: dict[str, int], merges: list[tuple[str, str]], split: str, *, ignore_merges: bool, nfc: bool
) -> Encode:
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


def _merges_of(ranks: dict[bytes, int], spelled: dict[bytes, str]) -> list[tuple[str, str]]:
    """Return the merges equivalent to tiktoken's ranks: every split of a piece into two pieces, in order of rank.

    tiktoken merges the neighbours whose union has the lowest rank, however they arose; listing every split does too.
    """
    cuts = [
        (rank, ranks[piece[:i]], ranks[piece[i:]], piece, i)
        for piece, rank in ranks.items()
        for i in range(1, len(piece))
        if piece[:i] in ranks and piece[i:] in ranks
    ]
    return [(spelled[piece[:i]], spelled[piece[i:]]) for *_, piece, i in sorted(cuts)]


def _split_of(folder: Path) -> str:
    """Return the pattern that splits a text into words, from the class named in tokenizer_config.json."""
    config: Any = {}
    path = folder / "tokenizer_config.json"
    if path.is_file():
        config = json.loads(path.read_bytes())
    name = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if name != "Qwen2Tokenizer":
        found = f"names {name!r}" if name else "is missing or does not name a class"
        raise ConfigError(
            f"{folder}: tokenizer_config.json {found}; vocab.json does not tell how a text is split into words, "
            f"and only Qwen2Tokenizer is supported. Use the model's tokenizer.json instead"
        )
    return _QWEN_2_SPLIT
