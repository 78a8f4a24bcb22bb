"""The result of a detector: an answer, its confidence, and the numbers behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question about a data set.

    Attributes:
        question: such as "is action[0:3] a displacement or a pose?".
        answer: one of the detector's answers, or "unknown" if the evidence is too weak.
        confidence: 0 to 1; a judgement from correlation, margin and number of samples, not a calibrated
            probability. 0 if the answer is unknown.
        why: one sentence with the numbers behind the answer, or the missing evidence.
        evidence: the same numbers by name, JSON-ready.
    """

    question: str
    answer: str
    confidence: float
    why: str
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether there is an answer."""
        return self.answer != UNKNOWN


def unknown(question: str, why: str, **evidence: Any) -> Finding:
    """Return a finding without an answer, with the reason."""
    return Finding(question, UNKNOWN, 0.0, why, evidence)
