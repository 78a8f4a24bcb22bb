"""Many parts of an object, fetched with few requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from oxe_curate.storage.link import link
from oxe_curate.storage.transfers import LONGEST

if TYPE_CHECKING:
    from oxe_curate.storage.objects import StoredObject


def join_ranges(ranges: Iterable[tuple[int, int]], gap: int, longest: int = LONGEST) -> list[tuple[int, int]]:
    """(offset, length) of the requests for some ranges: those closer than `gap` are fetched together.

    Args:
        ranges: (offset, length), in any order; they may overlap.
        gap: bytes.
        longest: bytes of a request, unless a range is longer.
    """
    found: list[list[int]] = []
    for offset, length in sorted(part for part in ranges if part[1] > 0):
        end = max(offset + length, found[-1][1] if found else 0)
        if found and offset - found[-1][1] < gap and end - found[-1][0] <= longest:
            found[-1][1] = end
        else:
            found.append([offset, offset + length])
    return [(start, stop - start) for start, stop in found]


def read_many(opened: StoredObject, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
    """The bytes of many parts of an object, in the order of `ranges`.

    Gaps that are cheaper to read than another request are read (`Link.gap`). Requests are made at once, as far as
    `StoreOptions.requests` allows for the whole process. Memory: what is fetched, of which the result is a view.

    Args:
        opened: the object.
        ranges: (offset, length) inside it.

    Raises:
        StorageError: a request failed.
    """
    runs = join_ranges(ranges, link.gap)
    held = [memoryview(bytearray(length)) for _, length in runs]
    opened.read_into([(offset, into) for (offset, _), into in zip(runs, held, strict=True)])
    found: list[memoryview] = [memoryview(b"")] * len(ranges)
    at = 0
    for i in sorted(range(len(ranges)), key=lambda i: ranges[i]):
        offset, length = ranges[i]
        if length <= 0:
            continue
        while offset + length > sum(runs[at]):
            at += 1
        found[i] = held[at][offset - runs[at][0] :][:length]
    return found
