"""Recognise a file that is something else: a Git LFS pointer, a web page, a compressed or an empty file."""

from __future__ import annotations

from oxe_curate.errors import CorruptError

HEAD = 512
"""Bytes from the start of a file that `foreign` needs."""

ARRAY_RECORD = b"\x83\xaf\x70\xd1\x0d\x88\x4a\x3f"
"""The first bytes of a Riegeli file."""
_AGAIN = "download the file again"
_COMPRESSED = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
}  # fmt: skip
_OTHER = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file", b"PAR1": "a Parquet file", b"\x93NUMPY": "a numpy file",
    b"SQLite": "a database", b"%PDF": "a PDF file", b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image",
}  # fmt: skip


class ForeignFileError(CorruptError):
    """A file is something else than its name says; the message says what to do."""


def foreign(head: bytes) -> str:
    """What a file is that is neither a shard nor JSON, and what to do, as the predicate of a sentence.

    Args:
        head: its first `HEAD` bytes, or all of them.

    Returns:
        Such as "is a Git LFS pointer, ...; run ..."; "" if it is not one of the known kinds.
    """
    if not head:
        return f"is empty: {_AGAIN}"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the data itself: run `git lfs pull` in its folder"
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return f"is compressed ({name}): decompress it under the name that dataset_info.json gives it"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it"
    for magic, name in _OTHER.items():
        if head.startswith(magic):
            return f"is {name}, expected a file of TFDS: {_AGAIN}"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--", b"<error")):
        return f"is a web page or an error message of a server: {_AGAIN}"
    if head.startswith(ARRAY_RECORD):
        return "is an array_record file, which dataset_info.json and its name do not say: correct its fileFormat"
    if len(head) >= 16 and not head.strip(b"\0"):
        return f"begins with zeros, as an interrupted download does: {_AGAIN}"
    return ""


def is_json(head: bytes) -> bool:
    """Whether a file that should be a shard begins like a JSON object or list, or a text."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return start.startswith((b"{", b"[")) and all(byte >= 32 or byte in b"\t\r\n" for byte in head)
