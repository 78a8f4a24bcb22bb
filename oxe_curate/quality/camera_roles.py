"""Whether a data set's cameras are where its card says: one on the hand sees everything move, a fixed one the arm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from oxe_curate.quality.findings import DataFinding
from oxe_curate.quality.looks import LookedFrames
from oxe_curate.quality.pictures import has_contents

_FRAMES, _EPISODES = 5, 12
"""Looked-at frames with contents that an episode needs, and such episodes."""
_STILL = 3.0
"""Grey levels: the deviation over time up to which a cell of the thumbnail does not change."""
_MOVING, _FIXED = 0.25, 0.55
"""Usual share of still cells below which a camera moves, and above which it does not.

Measured: 0.58 to 0.82 for the fixed cameras of Bridge, Meta-World and the demo, 0.07 for cameras on the hand.
"""
_THIRD_PERSON = ("primary", "secondary", "extra")


CAMERA_FINDINGS = ("moving_camera", "fixed_camera")


def judge_cameras(looks: Mapping[str, LookedFrames]) -> Iterator[DataFinding]:
    """Findings about the roles of cameras.

    Args:
        looks: role -> looked-at frames of a sample of the episodes.
    """
    for role, frames in sorted(looks.items()):
        still = still_cells(frames)
        if np.isfinite(still).sum() < _EPISODES:
            continue
        usual = float(np.nanmedian(still))
        share = f"in the median episode {1 - usual:.0%} of the image changes"
        if role in _THIRD_PERSON and usual < _MOVING:
            yield DataFinding(
                name="moving_camera", severity="warning", dimension=None,
                text=f"the {role} camera moves: {share}, as if it were on the hand",
                advice=f"Compare the images with the card, and set the role of the camera: wrist instead of {role}?",
            )  # fmt: skip
        elif role == "wrist" and usual > _FIXED:
            yield DataFinding(
                name="fixed_camera", severity="warning", dimension=None,
                text=f"the wrist camera does not move: {share}, as if it were fixed",
                advice="Compare the images with the card, and set the role of the camera: primary instead of wrist?",
            )  # fmt: skip


def still_cells(looks: LookedFrames) -> NDArray[np.float64]:
    """float64 (n,): share of an episode's thumbnail that hardly changes, NaN with fewer than 5 frames with contents."""
    seen = np.flatnonzero(has_contents(looks))
    still = np.full(len(looks), np.nan)
    for episode in np.flatnonzero(np.bincount(looks.episode[seen], minlength=len(looks)) >= _FRAMES).tolist():
        frames = seen[looks.episode[seen] == episode]
        still[episode] = (looks.grey[frames].astype(np.float32).std(axis=0) < _STILL).mean()
    return still
