"""Checks of a mixture: errors and warnings, each with its line and advice.

An error means that the mixture should not be used for training in its present form. Published mixtures are checked by
the same rules: OpenVLA's Magic Soup++ contains dobbe, which fails OpenVLA's own criteria.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from oxe_curate import config
from oxe_curate.errors import ConfigError, quoted
from oxe_curate.index.duplicates import check_leaks
from oxe_curate.index.store import Index
from oxe_curate.mixture import card_facts
from oxe_curate.mixture.lines import Lines, find_lines
from oxe_curate.mixture.members import Member, MemberLookup
from oxe_curate.mixture.shares import Breakdown, breakdown
from oxe_curate.mixture.spec import Mixture
from oxe_curate.mixture.texts import missing_file
from oxe_curate.strict_yaml import YamlError, load_yaml

_MAX_FINDINGS = 1000
_FEW_EPOCHS, _MANY_EPOCHS = 1.0, 10.0
_RATE_RATIO = 5.0
"""Ratio of control rates above which the same displacement per step means very different speeds."""


@dataclass(frozen=True)
class Problem:
    """A finding of a check.

    Attributes:
        code: for programs, "fails_criterion".
        key: path in the YAML, "datasets.3.weight"; None if the finding is about the whole file.
        line: in the file, from 1.
        dataset: name of the entry, if the finding is about one.
        advice: what to do.
    """

    level: Literal["error", "warning"]
    code: str
    key: str | None
    line: int | None
    dataset: str | None
    message: str
    advice: str


def check_file(
    path: Path, index: Index | None = None, samples: int | None = None, cards: Path | None = None
) -> list[Problem]:
    """Check a mixture file. Raises ConfigError only if it cannot be read."""
    return check_text(config.read_yaml_text(path), str(path), index, samples, cards, path.parent)


def check_text(
    text: str,
    where: str,
    index: Index | None = None,
    samples: int | None = None,
    cards: Path | None = None,
    base: Path | None = None,
) -> list[Problem]:
    """Check the text of a mixture, errors first, then by line.

    Args:
        text: YAML.
        where: the file's name, with which the parser's messages start.
        index: None: sizes are the published ones, and versions are unknown.
        samples: number of training samples, for the checks of epochs.
        cards: a folder of the user's own cards.
        base: folder to which paths of image-text sources are relative; None: the sources are not checked.
    """
    try:
        data, _, root = load_yaml(text, where)
    except YamlError as error:
        return [Problem("error", "invalid", None, error.line, None, error.reason, "Fix the YAML error.")]
    lines = find_lines(root)
    findings = list(_duplicates_by_name(data, lines))
    try:
        mixture = config.build(Mixture, _without_duplicates(data), where)
    except ConfigError as error:
        findings += [_from_schema(message, where, _entry_numbers(data), lines) for message in str(error).splitlines()]
        return _sorted(findings)
    checker = _Checker(mixture, _entry_numbers(data), lines, index, cards)
    findings += checker.findings(samples)
    findings += _texts(mixture, lines, base)
    return _sorted(findings)


def has_errors(findings: Sequence[Problem]) -> bool:
    """Whether any finding is an error."""
    return any(finding.level == "error" for finding in findings)


def _sorted(findings: Sequence[Problem]) -> list[Problem]:
    """Errors first, then by line; the last of too many findings says how many are left out."""
    ordered = sorted(findings, key=lambda f: (f.level != "error", f.line or 0, f.code))
    rest = ordered[_MAX_FINDINGS:]
    if not rest:
        return ordered
    message = f"{len(rest):,} more findings"
    advice = "Fix those above, and check again."
    return [*ordered[:_MAX_FINDINGS], Problem(rest[0].level, "more", None, None, None, message, advice)]


def _from_schema(message: str, where: str, numbers: list[int], lines: Lines) -> Problem:
    # the schema counts entries without the removed duplicates
    in_file = re.compile(r"\bdatasets\.(\d+)")
    reason = in_file.sub(lambda m: f"datasets.{numbers[int(m[1])]}", message.removeprefix(f"{where}: "))
    key, line = lines.of_message(reason)
    return Problem("error", "invalid", key, line, None, reason, "Fix the key; docs/formats.md lists all keys.")


def _names(data: Any) -> list[str | None]:
    entries = data.get("datasets") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        return []
    return [e["name"] if isinstance(e, dict) and isinstance(e.get("name"), str) else None for e in entries]


def _entry_numbers(data: Any) -> list[int]:
    """Positions in the file's list of the entries that are not duplicates by name."""
    names = _names(data)
    first = _first_places(names)
    return [i for i, name in enumerate(names) if name is None or first[name] == i]


def _first_places(names: Sequence[str | None]) -> dict[str | None, int]:
    first: dict[str | None, int] = {}
    for i, name in enumerate(names):
        first.setdefault(name, i)
    return first


def _without_duplicates(data: Any) -> Any:
    if not _names(data):
        return data
    return {**data, "datasets": [data["datasets"][i] for i in _entry_numbers(data)]}


def _duplicates_by_name(data: Any, lines: Lines) -> Iterator[Problem]:
    names = _names(data)
    first = _first_places(names)
    for i, name in enumerate(names):
        if name is not None and first[name] < i:
            key = f"datasets.{i}"
            yield _duplicate(name, name, lines.of(f"datasets.{first[name]}"), key, lines.of(key))


def _duplicate(name: str, other: str, other_line: int | None, key: str, line: int | None) -> Problem:
    same = (
        f"duplicate data set {quoted(name)}"
        if name == other
        else f"{quoted(name)} is the same data set as {quoted(other)}"
    )
    where = f", first given on line {other_line}" if other_line else ""
    return Problem("error", "duplicate", key, line, name, f"{same}{where}", "Merge the entries.")


def _texts(mixture: Mixture, lines: Lines, base: Path | None) -> Iterator[Problem]:
    """Local image-text sources whose first file cannot be read."""
    for i, entry in enumerate(mixture.texts if base is not None else ()):
        assert base is not None
        if reason := missing_file(entry, base):
            key = f"texts.{i}.path"
            advice = "Correct the path or the columns; a relative path is relative to the mixture file."
            yield Problem("error", "no_text_source", key, lines.of(key), entry.name, reason, advice)


class _Checker:
    """The checks of a mixture with a valid schema."""

    def __init__(
        self, mixture: Mixture, numbers: list[int], lines: Lines, index: Index | None, cards: Path | None
    ) -> None:
        self.mixture, self.index, self.lines = mixture, index, lines
        self.keys = {entry.name: f"datasets.{n}" for entry, n in zip(mixture.datasets, numbers, strict=True)}
        self.members: list[Member] = []
        self.unknown: list[Problem] = []
        lookup = MemberLookup(index, cards)
        for entry in mixture.datasets:
            try:
                self.members.append(lookup.member(entry))
            except ConfigError as error:
                advice = "Correct the name, or add a card for the data set."
                self.unknown.append(self._entry("error", "unknown_dataset", entry.name, str(error), advice))

    def findings(self, samples: int | None) -> list[Problem]:
        found = [*self.unknown, *self._duplicates_by_alias()]
        for member in self.members:
            found += [*self._criterion(member), *self._version(member), *self._on_disk(member), *self._card(member)]
        found += [*self._absent(), *self._rates(), *self._licences()]
        if samples:
            found += self._epochs(breakdown(self.mixture, self.members, samples), samples)
        return found

    def _entry(
        self, level: Literal["error", "warning"], code: str, name: str, message: str, advice: str, key: str = ""
    ) -> Problem:
        path = self.keys[name] + key
        return Problem(level, code, path, self.lines.of(path), name, message, advice)

    def _whole(self, code: str, message: str, advice: str) -> Problem:
        return Problem("warning", code, "datasets", self.lines.of("datasets"), None, message, advice)

    def _duplicates_by_alias(self) -> Iterator[Problem]:
        first: dict[str, str] = {}
        for member in self.members:
            name, other = member.entry.name, first.setdefault(member.identity, member.entry.name)
            if other != name:
                key = self.keys[name]
                yield _duplicate(name, other, self.lines.of(self.keys[other]), key, self.lines.of(key))

    def _criterion(self, member: Member) -> Iterator[Problem]:
        card, name = member.card, member.entry.name
        if card.verdict == "fail":
            message = f"{name} fails OpenVLA's criteria ({card.reason})"
            advice = "Remove it; filter drops all its episodes unless given other criteria."
            yield self._entry("error", "fails_criterion", name, message, advice)
        elif card.verdict != "pass":
            message = f"{name}: whether it meets OpenVLA's criteria is {card.verdict} ({card.reason})"
            yield self._entry("warning", "criterion_open", name, message, "Inspect its data before training on it.")

    def _version(self, member: Member) -> Iterator[Problem]:
        good = card_facts.last_good_version(member.card)
        name = member.entry.name
        if good is None:
            return
        if member.version is None:
            message = (
                f"{name}: versions after {good} are known to be broken, and without the index its version is unknown"
            )
            yield self._entry("warning", "version_open", name, message, f"Download version {good} and filter it.")
        elif card_facts.is_broken(member.card, member.version):
            message = f"{name}: the index has version {member.version}; versions after {good} are known to be broken"
            yield self._entry("error", "broken_version", name, message, f"Filter version {good} instead.")

    def _on_disk(self, member: Member) -> Iterator[Problem]:
        if member.dataset is None or self.index is None:
            return
        name, entry = member.entry.name, self.index.datasets[member.dataset]
        have = entry.split_names
        if missing := [split for split in member.entry.splits if split not in have]:
            message = f"{name}: split {missing[0]!r} is not in the index, only {', '.join(sorted(have))}"
            yield self._entry("error", "no_split", name, message, "Set the entry's key 'splits', or filter that split.")
        elif not member.episodes:
            reasons = entry.drop_reasons or "it is empty"
            message = f"{name} has no kept episode in the index ({reasons})"
            yield self._entry("error", "empty", name, message, "Remove it, or run filter with other criteria.")

        try:
            drawn = {member.dataset: member.entry.splits}
            check_leaks(self.index.datasets, drawn, bool(self.index.criteria.get("allow_leak")))
        except ConfigError as error:
            message, _, advice = str(error).partition(" Leave ")
            yield self._entry("error", "leak", name, message.removesuffix("."), f"Leave {advice}")

    def _card(self, member: Member) -> Iterator[Problem]:
        card, name = member.card, member.entry.name
        if not card.language.keys:
            message = f"{name} has no instructions"
            yield self._entry("warning", "no_language", name, message, "Remove it, unless it is for pretraining only.")
        if card.verdict == "pass" and card_facts.gripper_polarity(card) == "undocumented":
            message = f"{name}: its card does not document which end of the gripper's range is open"
            advice = "Inspect a few of its episodes: an inverted gripper teaches the opposite."
            yield self._entry("warning", "gripper_polarity", name, message, advice)

    def _absent(self) -> Iterator[Problem]:
        absent = [m.entry.name for m in self.members if m.dataset is None]
        if self.index is not None and absent:
            message = f"{len(absent)} of {len(self.members)} data sets are not in the index: {_some(absent)}"
            yield self._whole(
                "not_in_index", message, "Their sizes are the published ones. Run filter on them before tokenize."
            )

    def _rates(self) -> Iterator[Problem]:
        rates = sorted((m.card.control_hz, m.entry.name) for m in self.members if m.card.control_hz)
        if rates and rates[-1][0] > _RATE_RATIO * rates[0][0]:
            (slow, slowest), (fast, fastest) = rates[0], rates[-1]
            message = (
                f"control rates differ by a factor of {fast / slow:.3g}: {slowest} {slow:g} Hz, {fastest} {fast:g} Hz. "
                "Actions are displacements per step, so the same motion has very different values"
            )
            yield self._whole(
                "control_rates", message, "Bounds per data set compensate in part; evaluate at the rate of your robot."
            )

    def _licences(self) -> Iterator[Problem]:
        open_ = [m.entry.name for m in self.members if m.card.licence is None]
        if open_:
            message = f"the licence of {len(open_)} of {len(self.members)} data sets is unknown: {_some(open_)}"
            yield self._whole("licence", message, "Ask the authors before publishing a model.")

    def _epochs(self, result: Breakdown, samples: int) -> Iterator[Problem]:
        if result.unknown:
            message = f"unknown size of {_some(result.unknown)}: shares and epochs of the others are upper bounds"
            yield self._whole("size_unknown", message, "Run filter on them, and give the index with --index.")
        for row in result.rows:
            if row.epochs is None:
                continue
            seen = f"{row.name}: {_number(row.epochs)} epochs in {samples:,} samples"
            if row.epochs < _FEW_EPOCHS:
                message = f"{seen}: at most {100 * row.epochs:.2g} % of its steps are seen"
                advice = "Intended if it adds variety; otherwise raise its weight, or train longer."
                yield self._entry("warning", "few_epochs", row.name, message, advice, ".weight")
            elif row.epochs > _MANY_EPOCHS:
                advice = "The model may memorise it; lower its weight."
                yield self._entry("warning", "many_epochs", row.name, seen, advice, ".weight")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 5 else ", ".join(names)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
