"""Conversion of normalised actions to bin numbers and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oxe_curate.errors import ConfigError, DataError, did_you_mean

BinScheme = Literal["openvla", "uniform"]
_KINDS: tuple[str, ...] = get_args(BinScheme)

_BLOCK = 1 << 15  # values; the scratch arrays of one block stay in the L2 cache
_GUESS_BIAS = np.float32(1e-4)  # bins; makes the arithmetic guess err downwards only, see `encode`


@dataclass(frozen=True)
class ActionBins:
    """Bins 0 .. count-1 of [-1, 1], ascending in value.

    `openvla` is the scheme of the released checkpoints: `count` EDGES at `linspace(-1, 1, count)`, hence count-1
    intervals, each closed on the left. The last bin contains only 1.0 and decodes to the centre of the interval
    below it. Bin b is OpenVLA's digit b+1 (`numpy.digitize` starts at 1): 0.0 is digit 128, bin 127.

    `uniform` has `count` intervals of equal width, closed on the left, the last closed on both sides.

    Attributes:
        kind: "openvla" or "uniform".
        count: number of bins, 2 to 256 (bins are stored as uint8).

    Raises:
        ConfigError: an unknown kind, or a count outside 2 .. 256.
    """

    kind: BinScheme = "openvla"
    count: int = 256

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(f"bins: unknown kind {self.kind!r}. {did_you_mean(str(self.kind), _KINDS)}")
        if not 2 <= self.count <= 256:
            raise ConfigError(f"bins: expected a count in 2 .. 256, got {self.count}")

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """Ascending boundaries: (count,) for `openvla`, (count+1,) for `uniform`."""
        return np.linspace(-1.0, 1.0, self.count + (self.kind == "uniform"))

    @property
    def low(self) -> NDArray[np.float64]:
        """float64 (count,), smallest value of each bin."""
        return self.edges[: self.count].copy()

    @property
    def high(self) -> NDArray[np.float64]:
        """float64 (count,), upper boundary of each bin, exclusive except for the last bin."""
        return np.append(self.edges[1 : self.count], 1.0)

    @property
    def centers(self) -> NDArray[np.float64]:
        """float64 (count,), the value that each bin decodes to."""
        middle = (self.edges[:-1] + self.edges[1:]) / 2
        return middle[np.minimum(np.arange(self.count), len(middle) - 1)]

    def encode(self, normalized: ArrayLike) -> NDArray[np.uint8]:
        """Return the bin of each value, after clipping it to [-1, 1].

        Values are compared as float32 with the float64 edges, which is what OpenVLA's pipeline does: a value
        next to an edge may be in another bin as float64. For `openvla` the result equals
        `numpy.digitize(clip(x, -1, 1), linspace(-1, 1, 256)) - 1`, about thirty times faster: an arithmetic guess is
        never too high and at most one too low, and one comparison with an edge corrects it.

        Args:
            normalized: any shape, cast to float32. Infinities are clipped.

        Raises:
            DataError: a NaN.
        """
        values = np.asarray(normalized, np.float32)
        flat = values.reshape(-1)
        bins = np.empty(flat.shape, np.uint8)
        size = min(_BLOCK, max(flat.size, 1))
        clipped, guess = np.empty(size, np.float32), np.empty(size, np.float32)
        index, above = np.empty(size, np.int32), np.empty(size, np.bool_)
        for start in range(0, flat.size, _BLOCK):
            x = flat[start : start + _BLOCK]
            if np.isnan(np.min(x)):
                place = tuple(int(i) for i in np.argwhere(np.isnan(values))[0])
                raise DataError(f"action at index {place} is NaN; drop such episodes first (criterion not_finite)")
            n = len(x)
            c, g, i, a, out = clipped[:n], guess[:n], index[:n], above[:n], bins[start : start + n]
            np.clip(x, np.float32(-1), np.float32(1), out=c)
            # Rounding moves (x + 1) * scale by less than 3e-5 bins; the bias of 1e-4 exceeds that.
            np.add(c, np.float32(1), out=g)
            np.multiply(g, self._scale, out=g)
            np.subtract(g, _GUESS_BIAS, out=g)
            np.copyto(i, g, casting="unsafe")
            np.take(self._next_edge, i, out=g, mode="clip")
            np.greater_equal(c, g, out=a)
            np.copyto(out, i, casting="unsafe")
            np.add(out, a.view(np.uint8), out=out)
        return bins.reshape(values.shape)

    def decode(self, bins: NDArray[Any]) -> NDArray[np.float32]:
        """Return the centre of each bin, float32, same shape.

        Raises:
            DataError: not an integer array, or a bin outside 0 .. count-1.
        """
        bins = np.asarray(bins)
        if bins.dtype.kind not in "ui":
            raise DataError(f"expected integer bins, got {bins.dtype}")
        if bins.size and (int(bins.min()) < 0 or int(bins.max()) >= self.count):
            raise DataError(f"expected bins in 0 .. {self.count - 1}, got {bins.min()} .. {bins.max()}")
        decoded: NDArray[np.float32] = self._centers32[bins]
        return decoded

    @cached_property
    def _scale(self) -> np.float32:
        return np.float32((len(self.edges) - 1) / 2)

    @cached_property
    def _centers32(self) -> NDArray[np.float32]:
        return self.centers.astype(np.float32)

    @cached_property
    def _next_edge(self) -> NDArray[np.float32]:
        """float32 (count,), the smallest value that belongs to the bin above; infinity for the last bin.

        For a float32 x, `x >= edge` in float64 is the same as `x >= smallest float32 not below edge`.
        """
        edges = self.edges[1 : self.count]
        rounded = edges.astype(np.float32)
        up = np.where(rounded < edges, np.nextafter(rounded, np.float32(np.inf)), rounded)
        return np.append(up, np.float32(np.inf)).astype(np.float32)
