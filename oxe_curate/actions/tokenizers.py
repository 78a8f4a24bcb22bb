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

from oxe_curate.actions.byte_level import (
    Encode,
    TokenPiece,
    byte_level_encode,
    byte_level_letters,
    from_byte_level,
    text_or_bytes,
)
from oxe_curate.errors import ConfigError, quoted
from oxe_curate.inputs import decode_text, load_json, parse_json, read_input

_EXPECTED = "tokenizer.json, tokenizer.model, *.model*, vocab.json with merges.txt"

_MAX_BYTES = 256 << 20
"""The largest published tokenizer.json has 33 MB."""
_MAX_IDS = 10_000_000
_MAX_LINE = 10_000

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
    if source.name == "vocab.json":
        return _read_vocab_and_merges(source.parent)
    data = read_input(source, _MAX_BYTES, "tokenizer")
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

    content = parse_json(data, str(source))
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
        added = {int(token["id"]): str(token["content"]) for token in content.get("added_tokens") or []}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{source}: not a Hugging Face tokenizer: {error!r}") from None
    except BaseException as error:  # the Rust library raises plain Exception, and PanicException
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        hint = "" if source.name == "tokenizer.json" else f" Expected {_EXPECTED}"
        raise ConfigError(f"{source}: not a Hugging Face tokenizer: {error}.{hint}") from None
    decoder = json.dumps([content.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")])
    if '"ByteLevel"' in decoder:
        read: Callable[[str], TokenPiece] = from_byte_level
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
    data = {name: read_input(folder / name, _MAX_BYTES, "tokenizer") for name in names}
    listing = "".join(f"{name} {hashlib.sha256(data[name]).hexdigest()}\n" for name in sorted(names))
    vocab = _read_ids(data["vocab.json"], folder / "vocab.json")
    added = _read_ids(data.get("added_tokens.json", b"{}"), folder / "added_tokens.json")
    lines = decode_text(data["merges.txt"], f"{folder / 'merges.txt'}").split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        left, space, right = line.removesuffix("\r").partition(" ")
        if line and not line.startswith("#version"):
            if not space or not {left, right, left + right} <= vocab.keys():
                raise ConfigError(
                    f"{folder / 'merges.txt'}:{number}: expected two pieces of vocab.json, got {quoted(line)}; "
                    "copy both files again"
                )
            merges.append((left, right))

    @functools.cache
    def build() -> Encode:
        return byte_level_encode(vocab, merges, _split_of(folder), ignore_merges=False, nfc=True)

    return _vocabulary(
        {**vocab, **added},
        {i: piece for piece, i in added.items()},
        from_byte_level,
        size=len(vocab),
        sha256=hashlib.sha256(listing.encode()).hexdigest(),
        source=folder,
        encode=lambda text: build()(text),
    )


def _read_ids(data: bytes, where: Path) -> dict[str, int]:
    """Read {piece: id}."""
    ids = parse_json(data, str(where))
    if not isinstance(ids, dict) or not all(type(i) is int and 0 <= i < _MAX_IDS for i in ids.values()):
        raise ConfigError(f"{where}: expected {{piece: id}} with ids below {_MAX_IDS:,}; copy the file again")
    return ids


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
                piece, rank = line[:_MAX_LINE].split(b" ")
                ranks[base64.b64decode(piece, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise ConfigError(f"{source}: damaged tiktoken rank file at line {len(ranks) + 1}: {error}") from None
    size = len(ranks)
    if set(ranks.values()) != set(range(size)):
        raise ConfigError(f"{source}: damaged tiktoken rank file: the {size} ranks do not count from 0 to {size - 1}")
    is_llama_3 = size == _LLAMA_3_RANKS
    special = range(size, size + _LLAMA_3_SPECIAL) if is_llama_3 else range(0)
    pieces: list[TokenPiece] = [text_or_bytes(piece) for piece in sorted(ranks, key=ranks.__getitem__)]

    @functools.cache
    def build() -> Encode:
        if not is_llama_3:
            raise ConfigError(
                f"{source}: a rank file of {size} ranks does not tell how a text is split into words; "
                f"only Llama 3's 128,000 ranks are supported. Use the model's tokenizer.json instead"
            )
        letters = byte_level_letters()
        spelled = {piece: "".join(letters[byte] for byte in piece) for piece in ranks}
        vocab = {spelled[piece]: rank for piece, rank in ranks.items()}
        return byte_level_encode(vocab, _merges_of(ranks, spelled), _LLAMA_3_SPLIT, ignore_merges=True, nfc=False)

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
    highest = max([*ids.values(), *added], default=-1)
    if min([0, *ids.values(), *added]) < 0 or highest >= _MAX_IDS:
        raise ConfigError(f"{source}: expected ids from 0 to {_MAX_IDS:,}, got {quoted(highest)}; copy the file again")
    pieces: list[TokenPiece] = [None] * (highest + 1)
    for piece, i in ids.items():
        pieces[i] = added[i] if i in added else read(piece)
    reserved = sorted(i for i, piece in added.items() if _RESERVED.fullmatch(piece))
    return Vocabulary(size, tuple(pieces), frozenset(added), tuple(reserved), sha256, str(source), encode)


def _from_sentencepiece(piece: str) -> TokenPiece:
    """Decode SentencePiece's notation: U+2581 is a space, <0x0A> a byte."""
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ")


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
    path = folder / "tokenizer_config.json"
    config = load_json(path, constants=True) if path.is_file() else {}
    named = config.get("tokenizer_class") if isinstance(config, dict) else None
    name = named.removesuffix("Fast") if isinstance(named, str) else ""
    if name != "Qwen2Tokenizer":
        found = f"names {quoted(name)}" if name else "is missing or does not name a class"
        raise ConfigError(
            f"{folder}: tokenizer_config.json {found}; vocab.json does not tell how a text is split into words, "
            f"and only Qwen2Tokenizer is supported. Use the model's tokenizer.json instead"
        )
    return _QWEN_2_SPLIT
