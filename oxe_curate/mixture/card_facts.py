"""Facts that a card has only in its notes: gripper polarity and broken versions."""

from __future__ import annotations

import re
from typing import Literal

from oxe_curate.registry.card import DatasetCard

_SUITES = tuple(f"libero_{suite}_no_noops" for suite in ("10", "goal", "object", "spatial"))
SAME_DATA: dict[str, tuple[tuple[str, ...], str]] = {
    "bridge_oxe": (("bridge_orig",), "bridge_oxe is an older copy of Bridge"),
    "bridge_orig": (("bridge_oxe",), "bridge_oxe is an older copy of Bridge"),
    "libero_4_task_suites_no_noops": (_SUITES, "libero_4_task_suites_no_noops has all four suites"),
    **dict.fromkeys(_SUITES, (("libero_4_task_suites_no_noops",), "it has all four suites")),
}
"""Card -> the cards whose data it repeats, and why."""

Polarity = Literal["documented", "undocumented", "no gripper"]

_WORD = r"(?:open(?:s|ed|ing)?|clos(?:e|es|ed|ing))\b"
_STATED = re.compile(  # "-1 open", "1=closed", "0-open", "open = 1", "1x close", "+1 closes"
    rf"(?:\dx?|true)\s*(?:=|-|when)?\s*{_WORD}|{_WORD}\s*[=:]\s*[-+]?\d|absolute closure|gripper 0 when closing",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:gripper|sign)\b[^.;]*(?:undocumented|not documented)|gripper sign:.*unresolved", re.IGNORECASE
)
_DOCUMENTED_KEYS = ("open_gripper", "gripper_closedness_action", "target_close")
"""Step keys whose name documents the polarity."""
_LAST_GOOD = re.compile(r"versions after (\d+\.\d+\.\d+) are broken", re.IGNORECASE)


def gripper_polarity(card: DatasetCard) -> Polarity:
    """Whether the card documents which end of the gripper's range is open.

    It does if its notes give a number a direction ("-1 open / 1 close"), or the name of the step key does
    ("open_gripper"), and no note calls the sign undocumented. A data set with a constant gripper has no gripper.
    """
    recipe = card.recipes.get("openvla")
    if recipe is not None and all(piece.src is None for piece in recipe.gripper):
        return "no gripper"
    notes = " ".join(card.notes)
    if _DENIED.search(notes):
        return "undocumented"
    keys = {(piece.src or "").rsplit("/", 1)[-1] for piece in recipe.gripper} if recipe else set()
    words = " ".join(filter(None, (card.documented_action, card.state_layout, notes)))
    return "documented" if keys & set(_DOCUMENTED_KEYS) or _STATED.search(words) else "undocumented"


def last_good_version(card: DatasetCard) -> str | None:
    """The last version before those that the card calls broken; None if there are none."""
    for note in card.notes:
        if match := _LAST_GOOD.search(note):
            return match[1]
    return None


def is_broken(card: DatasetCard, version: str) -> bool:
    """Whether the card calls this version broken."""
    good = last_good_version(card)
    return good is not None and _numbers(version) > _numbers(good)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version))
