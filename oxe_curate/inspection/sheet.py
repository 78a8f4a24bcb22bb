"""A contact sheet: one row per camera and episode, time from left to right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from oxe_curate.inspection.sample import Sample

TILE = 160
"""Height of an image in pixels; the width follows the camera."""
_MARGIN, _LABEL = 4, 16


def contact_sheet(sample: Sample, episodes: int = 3, across: int = 6) -> NDArray[np.uint8]:
    """Draw the sample's frames: uint8 (H, W, 3). Cameras follow one another, each with its first episodes.

    Args:
        sample: the sampled data.
        episodes: rows of each camera.
        across: images per row, from the first to the last frame.
    """
    rows: list[tuple[str, list[Image.Image]]] = []
    for camera in sorted(sample.cameras, key=lambda c: c.key):
        for number, (frames, at) in enumerate(list(zip(camera.frames, camera.at, strict=True))[:episodes]):
            if not len(frames):
                rows.append((f"{camera.key}   episode {sample.ids[number]}: no frame could be read", []))
                continue
            chosen = np.unique(np.linspace(0, len(frames) - 1, across).astype(int))
            label = f"{camera.key}   episode {sample.ids[number]}   steps {', '.join(str(at[i]) for i in chosen)}"
            rows.append((label, [_tile(frames[i]) for i in chosen]))
    if not rows:
        rows = [("the data set has no encoded images", [])]
    width = max([sum(t.width + _MARGIN for t in tiles) for _, tiles in rows] + [7 * max(len(r[0]) for r in rows)])
    height = sum(_LABEL + _MARGIN + (TILE if tiles else 0) for _, tiles in rows)
    sheet = Image.new("RGB", (width + _MARGIN, height + _MARGIN), (255, 255, 255))
    pen, top = ImageDraw.Draw(sheet), _MARGIN
    for label, tiles in rows:
        pen.text((_MARGIN, top), label, fill=(30, 30, 30))
        top += _LABEL
        left = _MARGIN
        for tile in tiles:
            sheet.paste(tile, (left, top))
            left += tile.width + _MARGIN
        top += _MARGIN + (TILE if tiles else 0)
    return np.asarray(sheet)


def _tile(frame: NDArray[np.uint8]) -> Image.Image:
    height, width = frame.shape[:2]
    return Image.fromarray(frame).resize((max(1, round(width * TILE / height)), TILE), Image.Resampling.BILINEAR)


def png(picture: NDArray[np.uint8]) -> bytes:
    """Encode as PNG."""
    import io

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", optimize=True)
    return out.getvalue()
