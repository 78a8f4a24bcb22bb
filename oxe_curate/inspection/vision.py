"""What frames tell: black ones, a camera on the hand, exchanged red and blue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from oxe_curate.inspection.finding import Finding, unknown

Frames = NDArray[np.uint8]
"""uint8 (n, H, W, 3), RGB as decoded, in the order of time."""

BLACK = 12
"""A frame is black when no pixel is brighter than this: JPEG leaves a little noise."""
_SIDE = 64
_SAME = 14.0


def black_share(frames: Sequence[Frames]) -> float:
    """Share of frames without a pixel brighter than `BLACK`; 0 for none at all."""
    flags = [bool(frame.max(initial=0) <= BLACK) for episode in frames for frame in episode]
    return float(np.mean(flags)) if flags else 0.0


def grey(frames: Frames) -> NDArray[np.float32]:
    """Mean of the channels, blocks averaged to at most `_SIDE` a side: float32 (n, h, w)."""
    x = frames.mean(axis=3, dtype=np.float32)
    block = max(1, min(x.shape[1:]) // _SIDE)
    h, w = x.shape[1] // block, x.shape[2] // block
    x = x[:, : h * block, : w * block]
    out: NDArray[np.float32] = x.reshape(len(x), h, block, w, block).mean(axis=(2, 4))
    return out


def edges_that_stay(frames: Frames) -> NDArray[np.float64]:
    """Of the pixels on an edge in each frame, the share that looks the same in the next: float64 (n - 1,).

    Only edges count, since a bare table looks the same from anywhere. NaN where a frame has none.
    """
    x = grey(frames)
    gy, gx = np.gradient(x, axis=(1, 2))
    strength = np.abs(gx) + np.abs(gy)
    shares = np.full(max(len(x) - 1, 0), np.nan)
    for i in range(len(shares)):
        edge = strength[i] > max(8.0, float(np.quantile(strength[i], 0.8)))
        if edge.sum() >= 0.01 * edge.size:
            shares[i] = float((np.abs(x[i + 1] - x[i])[edge] < _SAME).mean())
    return shares


def camera_mount(frames: Sequence[Frames], motion: Sequence[NDArray[np.float64]], key: str = "the camera") -> Finding:
    """Is the camera on the hand, or does it stand still? Answers "wrist" (moving with the arm) or "third-person".

    A camera on the hand sees all edges move when the arm does; a fixed one only those of the arm and what it holds.
    A camera on a driving base or a head moves too and is not told from one on the hand.

    Args:
        frames: per episode, n frames spread over it.
        motion: per episode, how far the arm went between one frame and the next, float64 (n - 1,), in any unit.
        key: for the text.
    """
    question = f"is {key} on the hand?"
    seen = [f for f in frames if len(f)]
    if not seen:
        return unknown(question, "no frame could be read")
    if black_share(seen) > 0.5:
        return unknown(question, "most of its frames are black")
    shares, moved = [], []
    for episode, distance in zip(frames, motion, strict=True):
        if len(episode) >= 2:
            shares.append(edges_that_stay(episode))
            moved.append(np.asarray(distance, np.float64)[: len(shares[-1])])
    if not shares:
        return unknown(question, "no two frames of an episode to compare")
    stay, distance = np.concatenate(shares), np.concatenate(moved)
    good = np.isfinite(stay) & np.isfinite(distance)
    stay, distance = stay[good], distance[good]
    if len(stay) < 4:
        return unknown(question, f"only {len(stay)} pairs of frames to compare")
    busy = distance >= np.median(distance)
    kept = float(np.median(stay[busy]))
    r = float(np.corrcoef(distance, 1 - stay)[0, 1]) if distance.std() > 0 and stay.std() > 0 else 0.0
    evidence = {"edges_that_stay": round(kept, 3), "r_with_motion": round(r, 3), "pairs": len(stay)}
    why = f"while the arm moves, {100 * kept:.0f} % of the edges stay where they are; r = {r:.2f} of change with motion"
    amount = len(stay) / (len(stay) + 8)
    if kept >= 0.65:
        return Finding(question, "third-person", round(float(np.clip(0.5 + (kept - 0.65) * 1.6, 0.5, 0.97)) * amount, 2), why, evidence)
    if kept <= 0.5:
        sure = float(np.clip(0.5 + (0.5 - kept) * 1.2 + 0.2 * max(r, 0), 0.5, 0.9)) * amount
        return Finding(question, "wrist", round(sure, 2), why + "; a camera on a moving base looks alike", evidence)
    return unknown(question, f"{why}: between a fixed camera and one on the hand", **evidence)


def channel_order(frames: Sequence[Frames], key: str = "the camera") -> Finding:
    """Are red and blue exchanged? Never sure: by the hues of skin, wood and lamps, which are warm.

    Answers "rgb" or "bgr" with a confidence of at most 0.35. Blue sinks, cloths and walls mislead it; look at the
    thumbnails.
    """
    question = f"are red and blue exchanged in {key}?"
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
    why = f"a weak cue: {100 * share:.0f} % of the pixels with such a hue are warm as skin and wood are; look at the thumbnails"
    if 0.3 < share < 0.7:
        return unknown(question, why, **evidence)
    return Finding(question, "rgb" if share >= 0.7 else "bgr", round(0.35 * abs(2 * share - 1), 2), why, evidence)
