"""Check a card against the shapes of a data set on disk: its keys must exist and have enough columns."""

from __future__ import annotations

from collections.abc import Mapping

from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.registry.card import DatasetCard
from oxe_curate.registry.recipe import PART_WIDTHS, Piece

Widths = Mapping[str, tuple[int | None, ...]]
"""Flat step key -> shape without the time axis: () for a scalar, None for an unknown length."""


def check_features(
    card: DatasetCard, widths: Widths, where: str = "features.json", recipe: str | None = None
) -> tuple[str, ...]:
    """Compare a card with the shapes of a data set on disk.

    Args:
        card: the card.
        widths: the shapes of all step features.
        where: the name of the data set's file in errors.
        recipe: check this recipe; None checks all of the card's.

    Returns:
        Remarks on what will be omitted: proprio and cameras whose keys are missing.

    Raises:
        ConfigError: a recipe, proprio or the language reads a missing key or columns beyond its width;
            the message names the card, the place in it, and the closest key.
    """
    recipes = card.recipes if recipe is None else {recipe: card.recipe(recipe)}
    problems: list[str] = []
    for name, pieces in recipes.items():
        for part, expected in PART_WIDTHS.items():
            place = f"recipes.{name}.{part}"
            counts = [
                _count_columns(piece, f"{place}.{i}", widths, where, problems)
                for i, piece in enumerate(getattr(pieces, part))
            ]
            total = sum(count for count in counts if count is not None)
            if None not in counts and total != expected:
                problems.append(f"{place}: expected {expected} columns, got {total} from {where}")
    has_proprio = all(piece.src in widths for piece in card.proprio if piece.src is not None)
    for i, piece in enumerate(card.proprio if has_proprio else ()):
        _count_columns(piece, f"proprio.{i}", widths, where, problems)
    keys = card.language.keys
    if keys and not any(key in widths for key in keys):
        problems.append(f"language.keys: {where} has no {keys[0]!r}. {did_you_mean(keys[0], widths)}")
    if problems:
        # one line per cause: several pieces may read the same key
        causes = {problem.partition(": ")[2]: problem for problem in reversed(problems)}
        lines = [problem for problem in problems if causes[problem.partition(": ")[2]] == problem]
        raise ConfigError("\n".join(f"{card.name}.yaml: {problem}" for problem in lines[:5]))
    remarks = [f"camera {key!r} is missing" for key in card.cameras if key not in widths]
    return tuple(remarks if has_proprio else ["proprio is omitted: its keys are missing", *remarks])


def _count_columns(piece: Piece, place: str, widths: Widths, where: str, problems: list[str]) -> int | None:
    """Number of columns of the piece, None if unknown; its errors are appended to `problems`."""
    if piece.src is None:
        return piece.width
    if piece.src not in widths:
        problems.append(f"{place}.src: {where} has no step key {piece.src!r}. {did_you_mean(piece.src, widths)}")
        return None
    shape = widths[piece.src]
    width = shape[0] if shape else 1
    if len(shape) > 1:
        problems.append(f"{place}.src: {piece.src!r} has shape {shape} in {where}, expected (steps, columns)")
        return None
    if width is not None and width < piece.needed_width:
        problems.append(f"{place}.cols: {list(piece.cols or ())} reaches beyond {piece.src!r}, {width} wide in {where}")
        return None
    try:
        return piece.columns(width)
    except ValueError as error:
        problems.append(f"{place}: {error}")
        return None
