"""Detectors on images: black frames, wrist cameras, swapped red and blue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from oxe_curate.inspection.finding import Finding, unknown

Clip = NDArray[np.uint8]
"""uint8 (n, H, W, 3), RGB as decoded, in temporal order."""

_BLACK = 12
"""A frame is black when no pixel is brighter than this: JPEG leaves a little noise."""
_SIDE = 64
_PATTERN = 6.0  # grey levels of standard deviation inside a block
_ALIKE = 0.3
_MOVING, _FIXED = 0.22, 0.35
"""Share of static regions: below the first for a wrist camera, above the second for a fixed one. Measured: 0.79 to 0.84
and 0.65 on fixed cameras of Bridge and Meta-World, 0.41 to 0.54 on rendered ones, at most 0.17 on rendered wrist
cameras."""


def black_share(frames: Sequence[Clip]) -> float:
    """Share of frames without a pixel brighter than `_BLACK`; 0 without frames."""
    flags = [bool(frame.max(initial=0) <= _BLACK) for episode in frames for frame in episode]
    return float(np.mean(flags)) if flags else 0.0


def grey(frames: Clip) -> NDArray[np.float32]:
    """Mean of the channels, averaged over blocks to at most `_SIDE` per side: float32 (n, h, w)."""
    x = frames.mean(axis=3, dtype=np.float32)
    block = max(1, min(x.shape[1:]) // _SIDE)
    h, w = x.shape[1] // block, x.shape[2] // block
    x = x[:, : h * block, : w * block]
    out: NDArray[np.float32] = x.reshape(len(x), h, block, w, block).mean(axis=(2, 4))
    return out


def static_share(frames: Clip) -> float:
    """Share of the textured image blocks that are static through most of an episode.

    The image is cut into blocks of about a twelfth of its side. A block is static if, in at least two thirds of the
    frames, it differs from its median over time by less than `_ALIKE` of its contrast. Uniform blocks are ignored,
    since an empty table looks the same from anywhere. NaN if no block has a pattern.
    """
    x = grey(frames)
    side = max(2, min(x.shape[1:]) // 12)
    rows, columns = x.shape[1] // side, x.shape[2] // side
    blocks = x[:, : rows * side, : columns * side].reshape(len(x), rows, side, columns, side)
    blocks = blocks.transpose(0, 1, 3, 2, 4).reshape(len(x), rows * columns, side * side)
    contrast = blocks.std(axis=2).mean(axis=0)
    pattern = contrast > _PATTERN
    if pattern.mean() < 0.02:
        return float("nan")
    off = np.abs(blocks - np.median(blocks, axis=0)).mean(axis=2)[:, pattern] / contrast[pattern]
    return float((np.quantile(off, 0.65, axis=0) < _ALIKE).mean())


def camera_mount(frames: Sequence[Clip], motion: Sequence[NDArray[np.float64]], key: str = "the camera") -> Finding:
    """Is the camera on the wrist or fixed? Answers "wrist" (moving with the arm) or "third-person".

    When the arm moves, everything except the fingers moves in a wrist camera's image; only the arm and the held object
    move in a fixed camera's. A camera on a driving base or a head moves too and looks like a wrist camera.

    Args:
        frames: per episode, n frames spread over it.
        motion: per episode, distance that the arm moved between frames, float64 (n - 1,), in any unit.
        key: the camera's name for the question.
    """
    question = f"is {key} a wrist camera?"
    black = black_share(frames)
    kept, change, moved = [], [], []
    for episode, distance in zip(frames, motion, strict=True):
        if len(episode) >= 4 and black_share([episode]) <= 0.5 and np.nansum(distance) > 0:
            kept.append(static_share(episode))
            change.append(np.abs(np.diff(grey(episode), axis=0)).mean(axis=(1, 2)))
            moved.append(np.asarray(distance, np.float64))
    kept = [k for k in kept if np.isfinite(k)]
    evidence: dict[str, object] = {"black": round(black, 3), "episodes": len(kept)}
    if not kept:
        why = "the frames are black" if black > 0.5 else "no episode has four frames with a pattern while the arm moves"
        return unknown(question, why, **evidence)
    stay = float(np.median(kept))
    x, y = np.concatenate(moved), np.concatenate(change)
    good = np.isfinite(x)
    x, y = x[good], y[good]
    r = float(np.corrcoef(x, y)[0, 1]) if len(x) > 3 and x.std() > 0 and y.std() > 0 else 0.0
    evidence |= {"places_that_stay": round(stay, 3), "r_with_motion": round(r, 3)}
    why = (
        f"{100 * stay:.0f} % of the regions with a pattern are static while the arm moves ({len(kept)} episodes); "
        f"image change correlates with motion at r = {r:.2f}"
    )
    amount = len(kept) / (len(kept) + 1)
    if stay >= _FIXED and r < 0.15:
        return unknown(question, f"{why}: the arm seems to be out of view", **evidence)
    if stay >= _FIXED:
        sure = float(np.clip(0.6 + (stay - _FIXED), 0.6, 0.97)) * amount
        return Finding(question, "third-person", round(sure, 2), why, evidence)
    if stay <= _MOVING:
        sure = float(np.clip(0.6 + (_MOVING - stay) * 1.3, 0.6, 0.9)) * amount
        return Finding(question, "wrist", round(sure, 2), f"{why}; a camera on a moving base looks the same", evidence)
    return unknown(question, f"{why}: between a fixed and a wrist camera", **evidence)


def channel_order(frames: Sequence[Clip], key: str = "the camera") -> Finding:
    """Are red and blue swapped? Judged from the warm hues of skin, wood and lamps, so with low confidence.

    Answers "rgb" or "bgr" with a confidence of at most 0.35. Blue sinks, cloths and walls mislead it; check the
    thumbnails.
    """
    question = f"are red and blue swapped in {key}?"
    warm = cold = total = 0
    for episode in frames:
        for frame in episode[:4]:
            r, g, b = (frame[::2, ::2, c].astype(np.int16) for c in range(3))
            warm += int(((r > g + 6) & (g > b + 6)).sum())
            cold += int(((b > g + 6) & (g > r + 6)).sum())
            total += r.size
    hued = (warm + cold) / total if total else 0.0
    share = warm / (warm + cold) if warm + cold else 0.5
    evidence = {"share_with_hue": round(hued, 3), "share_warm": round(share, 3)}
    if hued < 0.02:
        return unknown(question, f"only {100 * hued:.1f} % of the pixels have a warm or a cold hue", **evidence)
    why = f"weak cue: {100 * share:.0f} % of the coloured pixels are warm, like skin and wood; check the thumbnails"
    if 0.3 < share < 0.7:
        return unknown(question, why, **evidence)
    return Finding(question, "rgb" if share >= 0.7 else "bgr", round(0.35 * abs(2 * share - 1), 2), why, evidence)
