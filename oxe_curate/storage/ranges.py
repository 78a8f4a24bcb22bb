"""Which requests fetch many parts of an object."""

from __future__ import annotations

from collections.abc import Iterable

from oxe_curate.storage.transfers import LONGEST


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
