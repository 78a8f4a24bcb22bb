"""Instructions damaged by a wrong character set, by markup, or by code that printed a value instead of its text."""

from __future__ import annotations

import base64
import binascii
import functools
import re
import unicodedata

DAMAGE_KINDS = (
    "text decoded with the wrong character set", "a replacement character", "a control or unassigned character",
    "an HTML entity", "an escape sequence", "the source code of a value", "UTF-16 read as another encoding",
    "encoded text", "the text ends within a phrase",
)  # fmt: skip
"""How a text is damaged."""

_ENTITY = re.compile(r"&(?:#\d{1,6}|#[xX][0-9a-fA-F]{1,5}|[A-Za-z]{2,8}\d?);")
_ESCAPE = re.compile(
    "|".join(
        (
            r"\\(?:[nrtbfv0\"']|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|U[0-9a-fA-F]{8}|[0-7]{3})",  # Python, C, JSON
            r"%[0-9a-fA-F]{2}|\b\w+(?:\+\w+){2,}\b",  # URL
            r"<0x[0-9A-F]{2}>|=[0-9A-F]{2}=[0-9A-F]{2}|\bu[0-9a-f]{4}u[0-9a-f]{4}",  # tokenizers, quoted-printable
        )
    )
)
_SOURCE = re.compile(
    "|".join(
        (
            r"[bur]{1,2}(['\"]).*\1",
            r"(?:np\.|numpy\.)?(?:array|str_|bytes_|ndarray|object_)\(.*",
            r"(?:tf\.|<tf\.|torch\.)?[Tt]ensor\(.*|<tf\..*|<[\w.]+ object at 0x.*",
            r"[\[({]\s*b?['\"].*|b?'[^']*'\s*,.*",
        )
    ),
    re.DOTALL,
)
_INNER_QUESTION = re.compile(r"[^\W\d_]\?+[^\W\d_]")
_CUT = re.compile(r"\b(?:the|an|and)\s*$", re.IGNORECASE)
_LATIN_RUN = re.compile("[\u00a1-\u00ff]{4}")
"""No language has four such letters in a row: text in another character set, read as Latin-1."""
_CLOSING = "\u2018\u2019\u201c\u201d\u2013\u2014\u2026"
"""Quotation marks, dashes and the ellipsis, which may follow an accented letter."""
_CODECS = ("cp1252", "latin-1", "mac_roman", "cp437", "cp1251", "gbk", "shift_jis", "euc_kr", "koi8_r")


def damage_kind(text: str) -> int:
    """Which of `DAMAGE_KINDS` a text has, -1 for none.

    >>> DAMAGE_KINDS[damage_kind("poser la tasse b\u00c3\u00a9ante")]
    'text decoded with the wrong character set'
    """
    return _damage_kind(text) if text else -1


@functools.lru_cache(1 << 16)
def _damage_kind(text: str) -> int:
    if "\ufffd" in text or _INNER_QUESTION.search(text):
        return 1
    stripped = text.strip()
    if not text.isascii() or not stripped.isprintable():
        for c in stripped:
            if (kind := unicodedata.category(c)) in ("Cs", "Co", "Cn") or c in "\ufeff\ufffe":
                return 6 if kind == "Cs" else 2
            if kind == "Cc" and c not in "\n\r\t":
                return 6 if c == "\0" else 2
        if _is_utf16(stripped):
            return 6
        if _is_misread(stripped):
            return 0
    if _SOURCE.fullmatch(stripped):
        return 5
    if _ENTITY.search(text):
        return 3
    if _ESCAPE.search(text):
        return 4
    if _is_base64(stripped):
        return 7
    if _CUT.search(stripped):
        return 8
    return -1


def _is_misread(text: str) -> bool:
    """Whether some characters are the UTF-8 bytes of others, read with a one-byte or an East Asian character set."""
    if _LATIN_RUN.search(text):
        return True
    foreign = "".join(c if not c.isascii() else " " for c in text).split()
    for codec in _CODECS:
        for piece in foreign:
            if len(piece) < 2 or (len(piece) == 2 and piece[1] in _CLOSING):
                continue
            try:
                raw = b"".join(_encoded(c, codec) for c in piece)
                right = raw.decode("utf-8")
            except UnicodeError:
                continue
            if len(right) < len(piece) and all(unicodedata.category(c)[0] in "LPSMNZ" for c in right):
                return True
    return False


def _encoded(character: str, codec: str) -> bytes:
    """As bytes; the five that cp1252 leaves undefined pass through as they do in browsers."""
    if codec == "cp1252" and "\x80" <= character <= "\x9f":
        return character.encode("latin-1")
    return character.encode(codec)


def _is_utf16(text: str) -> bool:
    """Whether it looks like ASCII whose bytes were paired to characters."""
    if text.startswith(("\u00ff\u00fe", "\u00fe\u00ff")):  # the byte order mark, as Latin-1
        return True
    if len(text) < 3 or text.isascii():
        return False
    if all(ord(c) % 256 == 0 for c in text if c != " "):
        return True
    for codec in ("utf-16-le", "utf-16-be"):
        raw = text.encode(codec, "surrogatepass")
        plain = sum(byte == 32 or 97 <= byte <= 122 or 65 <= byte <= 90 for byte in raw)
        if plain >= 0.9 * len(raw) and b"\0" not in raw:
            return True
    return False


def _is_base64(text: str) -> bool:
    if len(text) < 12 or not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", text) or len(text) % 4:
        return False
    try:
        plain = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return b" " in plain and all(32 <= byte < 127 for byte in plain)
