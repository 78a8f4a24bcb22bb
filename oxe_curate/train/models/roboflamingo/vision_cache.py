"""Disk cache of the frozen vision tower's tokens: computed in the first epoch, read in later ones.

    cache.json      origin of the entries: hash of the tower's weights, preprocessing, shape and type
    ab/ab12...      one entry per file, raw values, named by a hash of the frame's pixels

Entries are bit-identical to the tower's output. Files are written under a temporary name and renamed, so existing files
are complete and any number of processes may share a folder. At the size limit, nothing more is stored: since epochs
repeat the same order, evicting the oldest entry would evict the next one needed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oxe_curate.errors import ConfigError, StorageError
from oxe_curate.train.models.roboflamingo.vit import ClipTower, to_open_clip

_DESCRIPTION = "cache.json"
KEY_BYTES = 16
"""Size of a key: 128 bits give 10^12 frames a collision with probability 10^-15."""

_PREPROCESSING = "uint8 RGB / 255, CLIP mean and std, no augmentation"
_WAITING = 512  # entries waiting to be written


def key_of(pixels: NDArray[np.uint8], resizing: str = "") -> bytes:
    """The key of one frame, uint8 (H, W, 3); `resizing` says how it becomes the tower's input, "" if it is that."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=KEY_BYTES)
    digest.update(resizing.encode())
    return digest.digest()


@dataclass(eq=False)
class VisionCache:
    """Tokens of frames. Picklable; each process has an equal share of the limit.

    Attributes:
        folder: of the entries. shape: (tokens, width) of an entry. dtype: of an entry.
        limit: bytes for all processes.
        world: number of processes that write.
    """

    folder: Path
    shape: tuple[int, int]
    dtype: torch.dtype
    limit: int
    world: int = 1
    _free: int = 0
    _lock: Any = field(default_factory=threading.Lock, repr=False)
    _writer: ThreadPoolExecutor | None = field(default=None, repr=False)
    _waiting: Any = field(default_factory=lambda: threading.BoundedSemaphore(_WAITING), repr=False)
    _error: OSError | None = None

    @classmethod
    def open(cls, folder: Path, tower: ClipTower, limit: int, world: int = 1) -> VisionCache:
        """Open or create a cache.

        Args:
            folder: created if missing.
            tower: the vision tower.
            limit: in bytes.
            world: number of processes that share it.

        Raises:
            ConfigError: the entries are from another tower, type or preprocessing.
            StorageError: cannot write to the folder.
        """
        dtype = tower.dtype
        shape = (tower.shape.tokens, tower.shape.width)
        expected = {
            "tower": fingerprint(tower),
            "preprocessing": _PREPROCESSING,
            "image_size": tower.shape.image_size,
            "shape": list(shape),
            "dtype": str(dtype).removeprefix("torch."),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / _DESCRIPTION
            if not file.exists():
                _publish(file, (json.dumps(expected, indent=2) + "\n").encode())
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        except OSError as error:
            raise StorageError(f"{folder}: cannot write: {error.strerror or error}") from None
        if found != expected:
            differs = ", ".join(key for key in expected if found.get(key) != expected[key])
            raise ConfigError(
                f"{folder}: cached features are from another vision tower or type (different {differs}). "
                "Remove the folder, or disable flamingo.cache_vision."
            )
        cache = cls(folder, shape, dtype, limit, world)
        stored = sum(1 for part in folder.iterdir() if part.is_dir() for _ in part.iterdir())
        cache._free = max(0, limit - stored * cache.entry_bytes) // world
        return cache

    @property
    def entry_bytes(self) -> int:
        """Size of an entry in bytes."""
        return math.prod(self.shape) * int(self.dtype.itemsize)

    def read(self, keys: Sequence[bytes]) -> tuple[list[int], torch.Tensor]:
        """Look up keys.

        Returns:
            indices in `keys` of cached frames, and their tokens (len(indices), tokens, width).
        """
        places, entries = [], []
        for place, key in enumerate(keys):
            try:
                data = bytearray(self._file(key).read_bytes())
            except OSError:
                continue
            if len(data) == self.entry_bytes:  # otherwise not written by this class
                places.append(place)
                entries.append(torch.frombuffer(data, dtype=self.dtype).view(self.shape))
        return places, torch.stack(entries) if entries else torch.empty((0, *self.shape), dtype=self.dtype)

    def write(self, keys: Sequence[bytes], tokens: torch.Tensor) -> None:
        """Store tokens (len(keys), tokens, width) in the background, up to the limit.

        Raises:
            StorageError: writing an earlier entry failed.
        """
        if self._error is not None:
            raise StorageError(f"{self.folder}: cannot write: {self._error.strerror or self._error}")
        new = [i for i, key in enumerate(keys) if not self._file(key).exists()]  # validation repeats batches
        keys, tokens = [keys[i] for i in new], tokens[new]
        with self._lock:
            count = min(len(keys), self._free // self.entry_bytes)
            self._free -= count * self.entry_bytes
            if count and self._writer is None:
                self._writer = ThreadPoolExecutor(1, "vision-cache")
        if not count or self._writer is None:
            return
        held = tokens[:count].detach().to("cpu", self.dtype).contiguous().view(torch.uint8).numpy()
        for key, entry in zip(keys, held.reshape(count, -1), strict=False):
            self._waiting.acquire()
            self._writer.submit(self._store, key, entry)

    def flush(self) -> None:
        """Wait until all entries are written."""
        if self._writer is not None:
            self._writer.shutdown(wait=True)
            self._writer = None

    def _store(self, key: bytes, entry: NDArray[np.uint8]) -> None:
        try:
            file = self._file(key)
            file.parent.mkdir(exist_ok=True)
            _publish(file, entry.data)
        except OSError as error:
            self._error = error
        finally:
            self._waiting.release()

    def _file(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / name

    def __getstate__(self) -> dict[str, Any]:
        kept = ("folder", "shape", "dtype", "limit", "world", "_free")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*(state[name] for name in ("folder", "shape", "dtype", "limit", "world", "_free")))  # type: ignore[misc]


def fingerprint(tower: ClipTower) -> str:
    """SHA-256 of a tower's shape and weights, under open_clip's names."""
    digest = hashlib.sha256(repr(tower.shape).encode())
    for name, value in sorted(to_open_clip(tower.visual.state_dict()).items()):
        digest.update(name.encode())
        digest.update(value.detach().to("cpu").contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _publish(file: Path, data: Any) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    partial.write_bytes(data)
    partial.replace(file)
