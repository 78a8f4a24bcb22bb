"""What a draft card leaves open, as entries of its `open_questions`."""

from __future__ import annotations

import textwrap

from oxe_curate.inspection.conventions import Conventions
from oxe_curate.inspection.leftovers import ARMS_QUESTION, JOINT_QUESTION, UNUSED_QUESTION


def open_questions(c: Conventions) -> list[str]:
    """What the data do not decide, and what to write for each answer; `filter` refuses the card until they are gone."""
    found = []
    if joints := c.of(JOINT_QUESTION):
        found.append(
            f"Are the action's columns joints ({joints.confidence:.2f}: {joints.why})? If so, keep action_encoding; "
            "filter drops the data set, which has no end-effector action. If not, write action_encoding and the recipe."
        )
    if two := c.of(ARMS_QUESTION):
        found.append(
            f"Does the action move two arms ({two.confidence:.2f}: {two.why})? If so, keep arms: bimanual; filter "
            "drops the data set. If not, write arms: single, action_encoding, and one arm's columns in the recipe."
        )
    if left := c.of(UNUSED_QUESTION):
        found.append(
            f"What are {left.answer} ({left.why})? Add them to xyz, rpy or gripper in the recipe, or leave them out if "
            "they command something else."
        )
    return found


def questions_yaml(c: Conventions) -> list[str]:
    """The lines of a draft with its open questions; none if there are none."""
    found = open_questions(c)
    if not found:
        return []
    lines = ["# TODO: correct the card, then remove each answered question; filter refuses the card before that"]
    lines.append("open_questions:")
    for question in found:
        text = textwrap.wrap(question, 102, break_on_hyphens=False, break_long_words=False)
        lines += ["  - >-", *(f"    {line}" for line in text)]
    return lines
