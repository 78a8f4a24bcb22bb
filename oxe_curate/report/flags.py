"""Which episodes a criterion concerns in a data set, how far each is above the limit, and which to show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

DUPLICATE = "duplicate"
_NEAR = "near_duplicate"
_VALUES = 20_000
"""Values of a criterion and data set that the histogram counts at most, evenly spaced."""


@dataclass(frozen=True, slots=True, order=True)
class Flag:
    """An episode that a criterion drops or marks.

    Attributes:
        rank: 0 for the worst of its data set and criterion.
        excess: how far it is above the limit (see `excess`); 0 without a value.
        path, row: of the index.
    """

    rank: int
    excess: float
    path: str
    row: int


@dataclass(eq=False)
class Flagged:
    """What the criteria found in a data set.

    Attributes:
        worst: criterion -> its first episodes, the worst first.
        marked: kept episodes that a criterion marks, or that are copies.
        marks: criterion -> kept episodes that it marks.
        excess: criterion -> values of the marked and dropped episodes, relative to their limit.
    """

    worst: dict[str, list[Flag]] = field(default_factory=dict)
    marked: int = 0
    marks: dict[str, int] = field(default_factory=dict)
    excess: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def excess(value: float | None, limit: float | None) -> float:
    """How many times the limit a value is; for a limit of zero or less, 1 plus the difference; 0 without a value."""
    if value is None or limit is None or np.isnan(value):
        return 0.0
    return value / limit if limit > 0 else 1 + value - limit


def own_limit(criterion: str, criteria: Mapping[str, Any]) -> tuple[str, float] | None:
    """The column and the limit of a criterion that looks at one number of an episode by itself, None for others."""
    column = {"too_short": "num_steps", "too_long": "num_steps", "idle": "idle_share"}.get(criterion)
    limit = criteria.get(criterion)
    if column is None or limit is None or (criterion == "idle" and criteria.get("idle_rule", "libero") != "libero"):
        return None
    return column, float(limit)


def flag(rows: pl.DataFrame, criteria: Mapping[str, Any], most: int) -> Flagged:
    """Find the episodes of a data set that the criteria drop or mark.

    Args:
        rows: columns of the index: reason, marks, duplicate_of, num_steps, idle_share; and hash, file, row.
        criteria: of the index.
        most: episodes of each criterion to return.
    """
    import polars as pl

    some = rows.filter(
        pl.col("reason").is_not_null() | (pl.col("marks").list.len() > 0) | pl.col("duplicate_of").is_not_null()
    )
    if not len(some):
        return Flagged()
    place = ["hash", "file", "row", "reason"]
    marks = (
        some.select(*place, "marks").explode("marks").drop_nulls("marks").unnest("marks")
        .select(*place, "criterion", excess=_excess(pl.col("value").cast(pl.Float64), pl.col("limit").cast(pl.Float64)))
    )  # fmt: skip
    reasons = some.drop_nulls("reason").select(*place, criterion="reason", excess=_own_excess(criteria))
    copies = (
        some.filter(pl.col("duplicate_of").is_not_null() & pl.col("reason").is_null())
        .join(marks.filter(pl.col("criterion") == _NEAR), on=["file", "row"], how="anti")
        .select(*place, criterion=pl.lit(DUPLICATE), excess=pl.lit(0.0))
    )
    every = (
        pl.concat([marks, reasons, copies])
        .group_by("file", "row", "criterion")
        .agg(pl.col("excess").max(), pl.col("hash").first())
        .sort("criterion", "excess", "hash", "file", "row", descending=[False, True, False, False, False])
    )
    found = Flagged(marked=some["reason"].null_count())
    kept = pl.concat([marks, copies]).filter(pl.col("reason").is_null())
    found.marks = dict(kept.group_by("criterion").len().sort("criterion").rows())
    for (criterion,), group in every.group_by("criterion", maintain_order=True):
        first = group.head(most).select("excess", "file", "row").rows()
        found.worst[str(criterion)] = [Flag(i, e, path, row) for i, (e, path, row) in enumerate(first)]
        values = group["excess"].to_numpy()
        values = values[np.isfinite(values) & (values != 0)]
        if len(values):
            found.excess[str(criterion)] = values[:: -(-len(values) // _VALUES)]
    return found


def _excess(value: pl.Expr, limit: pl.Expr) -> pl.Expr:
    import polars as pl

    return pl.when(limit > 0).then(value / limit).otherwise(1 + value - limit).fill_nan(0.0).fill_null(0.0)


def _own_excess(criteria: Mapping[str, Any]) -> pl.Expr:
    """Of the reason: its number relative to its limit; the shorter, the worse, if it is too short."""
    import polars as pl

    found: Any = pl.lit(0.0)
    for name in ("too_short", "too_long", "idle"):
        if own := own_limit(name, criteria):
            column, limit = pl.col(own[0]).cast(pl.Float64), own[1]
            ratio = limit / pl.max_horizontal(column, pl.lit(0.5)) if name == "too_short" else column / (limit or 1.0)
            found = pl.when(pl.col("reason") == name).then(ratio.fill_null(0.0)).otherwise(found)
    return found  # type: ignore[no-any-return]


def choose(flags: Mapping[str, Iterable[Flag]], most: int) -> list[Flag]:
    """Choose episodes so that every criterion and every data set has a share: the worst of each first.

    Args:
        flags: criterion -> episodes of all data sets.
        most: episodes to choose.

    Returns:
        Different episodes; the worst of a criterion and data set comes before the second worst of any.
    """
    queues = [sorted(mine, key=lambda f: (f.rank, -f.excess, f.path, f.row)) for mine in flags.values()]
    chosen: dict[tuple[str, int], Flag] = {}
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue) and len(chosen) < most:
                chosen.setdefault((queue[turn].path, queue[turn].row), queue[turn])
    return list(chosen.values())


def evenly(count: int, every: int) -> Sequence[int]:
    """`every` positions or fewer of `count`, evenly spaced, the first and the last among them; one is the middle."""
    if every == 1 and count:
        return [count // 2]
    return sorted(set(np.linspace(0, count - 1, min(every, count)).round().astype(int).tolist())) if count else []
