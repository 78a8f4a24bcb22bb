"""The mixture file on disk: its text for the page, and an atomic save.

The page uses line feeds and no byte order mark. Saving restores both: an unchanged line keeps its line break.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import hashlib
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from oxe_curate.atomic import atomic_file, flush
from oxe_curate.errors import ConfigError, StorageError
from oxe_curate.storage import explain

_MAX_BYTES = 4 << 20
_MAX_COMPARED = 2000
"""Changed lines that are matched with old ones, which takes quadratic time."""
_BREAK = re.compile(r"(\r\n|\r|\n)")


@dataclass(frozen=True)
class Snapshot:
    """The file as it was read.

    Attributes:
        data: its bytes; None if the file does not exist.
    """

    data: bytes | None

    @property
    def digest(self) -> str:
        """SHA-256 of the contents; "" if the file does not exist."""
        return "" if self.data is None else hashlib.sha256(self.data).hexdigest()

    @property
    def text(self) -> str:
        """What the page shows. Raises ConfigError if the bytes are not UTF-8."""
        return view(self.data or b"")


def view(data: bytes) -> str:
    """Bytes -> text whose only line breaks are line feeds, without a byte order mark.

    Raises:
        ConfigError: the bytes are not UTF-8.
    """
    try:
        return _BREAK.sub("\n", data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8: {error.reason} at byte {error.start}; save the file as UTF-8") from None


def restore(text: str, original: bytes) -> bytes:
    """The bytes of a text that was edited from `original`, with its byte order mark and line breaks.

    An unchanged line keeps its break; a new line gets the most common one. `restore(view(b), b) == b` for any
    UTF-8 bytes.
    """
    mark = codecs.BOM_UTF8 if original.startswith(codecs.BOM_UTF8) else b""
    parts = _BREAK.split(original.decode("utf-8-sig"))
    old, breaks = parts[0::2], parts[1::2]
    common = Counter(breaks).most_common(1)[0][0] if breaks else "\n"
    if len(set(breaks)) <= 1:
        return mark + text.replace("\n", common).encode()
    new = text.split("\n")
    source = _lines_of(old, new)
    ends = [common if i is None or i >= len(breaks) else breaks[i] for i in source[:-1]]
    return mark + "".join(a + b for a, b in zip(new, [*ends, ""], strict=True)).encode()


def _lines_of(old: list[str], new: list[str]) -> list[int | None]:
    """The old line of each new line: lines before and after the change, and equal ones within; None for new lines."""
    shorter = min(len(old), len(new))
    head = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    tail = next((i for i in range(shorter - head) if old[-1 - i] != new[-1 - i]), shorter - head)
    source: list[int | None] = [None] * len(new)
    source[:head] = range(head)
    source[len(new) - tail :] = range(len(old) - tail, len(old))
    if max(len(old), len(new)) - head - tail > _MAX_COMPARED:
        return source
    matcher = difflib.SequenceMatcher(
        None, old[head : len(old) - tail], new[head : len(new) - tail], autojunk=False
    )  # fmt: skip
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal" or i_end - i == j_end - j:
            source[head + j : head + j_end] = range(head + i, head + i_end)
    return source


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises for a loop of links


class MixtureFile:
    """A file whose path is resolved once: a symbolic link is followed when the editor starts and never again.

    Attributes:
        path: as given by the user.
        target: the file that is read and written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.target = _real(self.path)
        if not self.target.parent.is_dir():
            raise StorageError(f"{self.target.parent}: no such folder")
        self.read()

    @property
    def is_link(self) -> bool:
        """Whether the given path is a symbolic link."""
        return self.path != self.target

    def read(self) -> Snapshot:
        """Read the file.

        Raises:
            ConfigError: not a regular file, or too large to be a mixture.
            StorageError: it cannot be read, or its path now points to another file.
        """
        self._check_place()
        try:
            handle = os.open(self.target, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            return Snapshot(None)
        except OSError as error:
            raise StorageError(f"{self.target}: {explain(error)}") from None
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            os.close(handle)
            raise ConfigError(f"{self.target}: expected a file, got a folder")
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
                raise ConfigError(f"{self.target}: not a mixture; expected a regular file of at most 4 MB")
            return Snapshot(file.read())

    def save(self, text: str, base: str, force: bool = False) -> tuple[bool, Snapshot]:
        """Write the page's text.

        Args:
            text: from `view`, edited.
            base: digest of the snapshot that the text was edited from.
            force: overwrite a file that changed on disk since then.

        Returns:
            whether the text is on disk, and the file as it is now. Without `force`, nothing is written if the file is
            not the one of `base`; nor is it if the bytes would be the same.

        Raises:
            StorageError: the disk is full, the file is not writable, or its path now points to another file.
        """
        now = self.read()
        if now.digest != base and not force:
            return False, now
        data = restore(text, now.data or b"")
        if data == now.data:
            return True, now
        try:
            self._replace(data)
        except OSError as error:
            raise StorageError(f"{self.target}: {explain(error)}. Nothing was written.") from None
        return True, Snapshot(data)

    def _check_place(self) -> None:
        if _real(self.path) != self.target or self.target.is_symlink():
            raise StorageError(f"{self.path}: points to another file than when the editor started; restart the editor")

    def _replace(self, data: bytes) -> None:
        with atomic_file(self.target) as temporary:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(handle, "wb") as file:
                with contextlib.suppress(FileNotFoundError):
                    status = self.target.stat()
                    os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
                    # another user's file: the mode is kept, the owner is not
                    with contextlib.suppress(PermissionError):
                        os.fchown(file.fileno(), status.st_uid, status.st_gid)
                file.write(data)
            flush(temporary)
