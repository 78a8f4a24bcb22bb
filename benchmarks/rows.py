"""A row of the page of results: a measured number, what it was compared with in the same run, and its limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

TOPICS = {
    "scan": "Scan: filter",
    "statistics": "Statistics",
    "tokenize": "Tokenize: images copied",
    "resize": "Images resized on the CPU",
    "reference": "Mixtures by reference",
    "far": "Far data",
    "loader": "The data path of training",
    "gpu": "Training and control on a GPU",
    "scale": "Scale",
    "quality": "Quality, and what judging costs",
    "editor": "Editor",
}
"""Key -> heading, in the order of the page."""


@dataclass(frozen=True)
class Limit:
    """A bound of a number."""

    bound: float
    at_least: bool

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(bound: float) -> Limit:
    """The number must not be smaller."""
    return Limit(bound, True)


def at_most(bound: float) -> Limit:
    """The number must not be larger."""
    return Limit(bound, False)


@dataclass(frozen=True)
class Anchor:
    """What a row was compared with.

    Attributes:
        name: of the other program, or of the other way.
        value: its number, in the row's unit.
        ratio: of the two numbers; `of` says which way.
        of: "speed" (above 1: faster than the anchor), "time" or "memory" (above 1: more than the anchor).
        cpu_ratio: the same by processor time.
    """

    name: str
    value: float
    ratio: float
    of: str
    cpu_ratio: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the page.

    Attributes:
        topic: key of TOPICS.
        what: is measured; unique in a group together with the anchor's name.
        value: the median.
        unit: of the value.
        spread: smallest and largest value of the rounds.
        anchor: what it was compared with; None if the number has a limit of its own, or none.
        limit: of the anchor's ratio, or without an anchor of the value.
        note: what else a reader must know, short.
        command: how to measure it again.
    """

    topic: str
    what: str
    value: float
    unit: str
    spread: tuple[float, float] | None = None
    anchor: Anchor | None = None
    limit: Limit | None = None
    note: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        if self.topic not in TOPICS:
            raise ValueError(f"{self.what}: no topic is named {self.topic}; the topics are {', '.join(TOPICS)}")

    @property
    def key(self) -> tuple[str, str]:
        return self.what, self.anchor.name if self.anchor else ""

    @property
    def judged(self) -> float:
        """The number that the limit is for."""
        return self.anchor.ratio if self.anchor else self.value

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept; None without one."""
        return self.limit.met(self.judged) if self.limit else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        spread, anchor, limit = data["spread"], data["anchor"], data["limit"]
        rest = {"spread": tuple(spread) if spread else None, "anchor": Anchor(**anchor) if anchor else None}
        return cls(**{**data, **rest, "limit": Limit(**limit) if limit else None})


def round_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over the rounds of the ratio within a round; contenders that stopped early have fewer rounds.

    What slows the machine for a while slows both contenders of a round, and leaves their ratio.
    """
    return median(a / b for a, b in zip(above, below, strict=False))


def takes_part(spent: Sequence[float], budget: float) -> bool:
    """Whether a contender that has taken `spent` seconds in each round so far has time for another; always for one."""
    return not spent or sum(spent) + sum(spent) / len(spent) <= budget
