"""Facts about each data set: cards, recipes, verdicts.

    card = load("bridge_dataset")        # by name or alias
    trajectory = card.standardize(steps)

Cards are YAML files in `cards/`; a user's folder is merged over them by name. A card is read when it
is requested; only listings read all of them.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oxe_curate.errors import ConfigError, closest, did_you_mean, quoted

if TYPE_CHECKING:
    from oxe_curate.registry.card import DatasetCard

CARDS_DIR = Path(__file__).parent / "cards"


def load(name: str, cards_dir: Path | None = None) -> DatasetCard:
    """Return the card called `name`, or the one that has it as an alias.

    Args:
        name: a card's name ("bridge_orig"), a TFDS name ("bridge_dataset") or another alias ("bridge_v2").
        cards_dir: a folder of the user's own cards; they take precedence.

    Raises:
        ConfigError: the name is unknown or ambiguous, or the card is invalid.
    """
    paths = _paths(cards_dir)
    if name in paths:
        return _read(paths[name])
    # only cards that mention the name can have it as an alias
    mentions = [path for path in paths.values() if name in _text(path)] if name else []
    owners = [card for card in map(_read, mentions) if name in card.aliases]
    own = [card for card in owners if paths[card.name].parent == cards_dir] or owners
    if len(own) > 1:
        raise ConfigError(f"the alias {quoted(name)} is ambiguous; it is in the cards {', '.join(c.name for c in own)}")
    if not own:
        suggestion = f" {close}" if (close := closest(name, _known(tuple(paths.values())))) else ""
        raise ConfigError(
            f"no card for data set {quoted(name)}.{suggestion} If it is your own data set, pass its cards with --cards "
            "FOLDER; `oxe-curate inspect` drafts one."
        )
    return own[0]


def names(cards_dir: Path | None = None) -> list[str]:
    """Return the names of all cards, sorted, without reading them."""
    return sorted(_paths(cards_dir))


def load_all(cards_dir: Path | None = None) -> dict[str, DatasetCard]:
    """Return every card by name, the user's own cards first. Raises ConfigError if one is invalid."""
    paths = _paths(cards_dir)
    return {name: _read(paths[name]) for name in sorted(paths)}


def table(
    cards_dir: Path | None = None,
    *,
    verdict: str | None = None,
    role: str | None = None,
    arms: str | None = None,
    text: str | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of `oxe-curate datasets`, sorted by name.

    Args:
        cards_dir: a folder of the user's own cards.
        verdict: only data sets with this verdict.
        role: only data sets with a camera of this role.
        arms: only data sets with these arms.
        text: only data sets whose name, aliases, robot, action encoding or reason contain it, ignoring case.

    Raises:
        ConfigError: unknown verdict, role or arms.
    """
    from typing import get_args, get_type_hints

    from oxe_curate.registry import card as cards

    known_arms = get_args(get_type_hints(cards.DatasetCard)["arms"])
    _check_choice("verdict", verdict, get_args(cards.Verdict))
    _check_choice("camera role", role, get_args(cards.Role))
    _check_choice("arms", arms, known_arms)

    def matches(row: dict[str, Any]) -> bool:
        searched = [row["name"], *row["aliases"], row["robot"], row["action_encoding"], row["reason"]]
        return (
            verdict in (None, row["verdict"])
            and (role is None or role in row["cameras"])
            and arms in (None, row["arms"])
            and (text is None or text.lower() in "\n".join(searched).lower())
        )

    return [row for row in map(_as_row, load_all(cards_dir).values()) if matches(row)]


def _check_choice(what: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise ConfigError(f"unknown {what} {quoted(value)}. {did_you_mean(value, known)}")


def _paths(cards_dir: Path | None) -> dict[str, Path]:
    if cards_dir is not None and not os.path.isdir(cards_dir):  # noqa: PTH112 (Path.is_dir raises for a long name)
        raise ConfigError(f"folder of cards not found: {cards_dir}")
    folders = [CARDS_DIR] if cards_dir is None else [CARDS_DIR, cards_dir]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


@functools.cache
def _known(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Every name and alias."""
    return tuple(name for card in map(_read, paths) for name in (card.name, *card.aliases))


@functools.cache
def _text(path: Path) -> str:
    from oxe_curate.config import read_yaml_text

    return read_yaml_text(path)


@functools.cache
def _read(path: Path) -> DatasetCard:
    from oxe_curate.registry.card import read_card

    return read_card(path)


def _as_row(card: DatasetCard) -> dict[str, Any]:
    """One line of the catalogue, JSON-ready: the keys of `table`."""
    cameras: dict[str, list[str]] = {}
    for key, camera in card.cameras.items():
        cameras.setdefault(camera.role, []).append(key)
    episodes = [s.episodes for s in card.splits.values() if s.episodes is not None]
    sizes = [s.bytes for s in card.splits.values() if s.bytes is not None]
    return {
        "name": card.name,
        "verdict": card.verdict,
        "reason": card.reason,
        "failed": list(card.failed_criteria),
        "robot": card.robot,
        "arms": card.arms,
        "cameras": cameras,
        "action_encoding": card.action_encoding,
        "control_hz": card.control_hz,
        "simulated": card.simulated,
        "episodes": sum(episodes) if episodes else None,
        "bytes": sum(sizes) if sizes else None,
        "num_transitions": card.num_transitions,
        "recipes": list(card.recipes),
        "aliases": list(card.aliases),
    }
