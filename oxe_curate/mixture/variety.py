"""Measures of the variety of a data set: pure functions of texts, frames and actions.

Variety is measured in effective numbers: exp(Shannon entropy), Hill's number of order 1 ("Diversity and Evenness",
Ecology 1973). Ten equally frequent tasks have an effective number of 10; one frequent and nine rare tasks, close to 1.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from oxe_curate.actions.dimensions import POSE_WIDTH
from oxe_curate.arrays import Floats

_THUMBNAIL = 32
_LUMA, _CHROMA = 6, 3
"""Number of lowest frequencies per axis. MPEG-7's colour layout keeps 6 + 3 + 3 coefficients; these are 36 + 9 + 9, so
that the position of things counts too."""
_SCENE_WIDTH = 0.08
"""RMS difference of two thumbnails, as a share of the pixel range, at which scenes begin to count as different. In
BridgeData V2 clips, the first and last frame of an episode differ by 0.07, the first frames of two episodes by 0.18
(medians of 25 episodes)."""
_SAME_FRAME, _SAME_ACTIONS = 0.01, 0.02
"""RMS differences below which first frames and actions are near-duplicates, as shares of their ranges."""
_ACTION_BINS = 16
_SIGNATURE = 16


def effective_number(counts: ArrayLike) -> float:
    """exp(entropy) of counts: between 1 and the number of non-zero counts; 0 for none.

    >>> effective_number([5, 5, 5, 5])
    4.0
    """
    values = np.asarray(counts, np.float64)
    values = values[values > 0]
    if not len(values):
        return 0.0
    p = values / values.sum()
    return float(np.round(np.exp(-(p * np.log(p)).sum()), 12))


def task(text: str) -> str:
    """An instruction without case, punctuation and spacing, so that spellings of one task count as one.

    >>> task(" Open the  drawer. ")
    'open the drawer'
    """
    return " ".join(re.findall(r"\w+", text.casefold()))


@functools.cache
def _dct(size: int, kept: int) -> Floats:
    """The first rows of the orthonormal DCT-II matrix, float64 (kept, size)."""
    k, n = np.arange(kept)[:, None], np.arange(size)[None, :]
    matrix = np.sqrt(2 / size) * np.cos(np.pi * (2 * n + 1) * k / (2 * size))
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix, np.float64)


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average an image down to uint8 (32, 32, 3)."""
    return np.asarray(Image.fromarray(image).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX))


def embed(small: NDArray[np.uint8]) -> Floats:
    """Embed a thumbnail by the layout of its colours: its low DCT frequencies in YCbCr.

    Scaled so that, by Parseval's theorem, the Euclidean distance of two embeddings is the RMS difference per pixel of
    the low-passed thumbnails, as a share of the range (chroma counts like luma).

    Args:
        small: uint8 (32, 32, 3), RGB, from `thumbnail`.

    Returns:
        float64 (54,).
    """
    planes = np.asarray(Image.fromarray(small).convert("YCbCr"), np.float64).transpose(2, 0, 1) / 255
    parts = []
    for plane, kept in zip(planes, (_LUMA, _CHROMA, _CHROMA), strict=True):
        matrix = _dct(_THUMBNAIL, kept)
        parts.append((matrix @ plane @ matrix.T).ravel() / _THUMBNAIL)
    return np.concatenate(parts)


def effective_scenes(embeddings: Floats, width: float = _SCENE_WIDTH) -> float:
    """The number of different scenes in some frames: the Vendi score with a Gaussian kernel.

    exp of the entropy of the eigenvalues of K / n, K_ij = exp(-d_ij^2 / (2 width^2)) (Friedman and Dieng, "The Vendi
    Score", TMLR 2023): n for frames far apart, 1 for copies of one frame, in between for clusters.

    Args:
        embeddings: float64 (n, d).
        width: distance at which two frames begin to differ.
    """
    if len(embeddings) == 0:
        return 0.0
    kernel = np.exp(-_squared_distances(embeddings) / (2 * width**2))
    return effective_number(np.maximum(np.linalg.eigvalsh(kernel / len(kernel)), 0))


def _squared_distances(points: Floats) -> Floats:
    norms = (points**2).sum(axis=1)
    return np.asarray(np.maximum(norms[:, None] + norms[None, :] - 2 * points @ points.T, 0), np.float64)


def action_coverage(actions: NDArray[np.floating]) -> float:
    """How evenly the pose actions cover their range: mean entropy of the six dimensions, 1 for uniform.

    Args:
        actions: (n, 7), normalised: [-1, 1] is the range from the 1st to the 99th percentile. A constant dimension
            counts as 0. The gripper is ignored: its two values carry little information.
    """
    if len(actions) == 0:
        return 0.0
    edges = np.linspace(-1, 1, _ACTION_BINS + 1)[1:-1]
    entropies = [
        np.log(max(effective_number(np.bincount(np.digitize(column, edges), minlength=_ACTION_BINS)), 1.0))
        for column in actions[:, :POSE_WIDTH].T
    ]
    return float(np.mean(entropies) / np.log(_ACTION_BINS))


def action_signature(actions: NDArray[np.floating]) -> Floats:
    """An episode's normalised actions at 16 evenly spaced times, float64 (16 * 7,), to find near-duplicates."""
    at = np.linspace(0, len(actions) - 1, _SIGNATURE)
    steps = np.arange(len(actions))
    return np.concatenate([np.interp(at, steps, column) for column in np.asarray(actions, np.float64).T])


def near_duplicates(tasks: Sequence[str], embeddings: Floats, signatures: Floats) -> float:
    """Share of episodes that are near-duplicates of an earlier one: same task, first frame and actions.

    Args:
        tasks: n texts, from `task`.
        embeddings: float64 (n, 54) of first frames.
        signatures: float64 (n, 112) of actions in [-1, 1].
    """
    n = len(tasks)
    if n < 2:
        return 0.0
    names = np.unique(np.asarray(tasks), return_inverse=True)[1]
    same = names[:, None] == names[None, :]
    same &= _squared_distances(embeddings) < _SAME_FRAME**2
    # an action's range is 2 wide
    same &= _squared_distances(signatures) / signatures.shape[1] < (2 * _SAME_ACTIONS) ** 2
    return float(np.tril(same, -1).any(axis=1).mean())
