"""Checks of a mixture: errors and warnings, each with its line and advice.

An error means that the mixture should not be used for training in its present form. Published mixtures are checked by
the same rules: OpenVLA's Magic Soup++ contains dobbe, which fails OpenVLA's own criteria.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from oxe_curate import config
from oxe_curate.errors import ConfigError, quoted
from oxe_curate.index.store import Index
from oxe_curate.mixture import card_facts
from oxe_curate.mixture.data_checks import data_faults, given_bounds
from oxe_curate.mixture.kinds import KINDS
from oxe_curate.mixture.lines import Lines, find_lines
from oxe_curate.mixture.members import Member, MemberLookup
from oxe_curate.mixture.problems import Problem, accept, has_errors, in_order
from oxe_curate.mixture.shares import Breakdown, breakdown
from oxe_curate.mixture.spec import Fault, Mixture, cameras_missing, resolve_entries, with_statistics
from oxe_curate.mixture.texts import missing_file
from oxe_curate.strict_yaml import YamlError, load_yaml

_FEW_EPOCHS, _MANY_EPOCHS = 1.0, 10.0
_RATE_RATIO = 5.0
"""Ratio of control rates above which the same displacement per step means very different speeds."""


def check_file(
    path: Path,
    index: Index | None = None,
    samples: int | None = None,
    cards: Path | None = None,
    statistics: Path | None = None,
) -> list[Problem]:
    """Check a mixture file; `statistics` replaces its bounds.

    Raises:
        ConfigError: it cannot be read. DataError: the index is damaged.
    """
    text = config.read_yaml_text(path)
    return check_text(text, str(path), index, samples, cards, path.parent, statistics, thorough=True)


def refuse(path: Path, index: Index, cards: Path | None = None, statistics: Path | None = None) -> list[Problem]:
    """Check a mixture before it is drawn from; return the warnings.

    Raises:
        ConfigError: what `check_file` calls an error and the mixture does not accept.
    """
    found = check_file(path, index, None, cards, statistics)
    errors = [f"{path}: {f.message.removesuffix('.')}. {f.advice}" for f in found if f.level == "error"]
    if not errors:
        return [f for f in found if f.level == "warning"]
    names = dict.fromkeys(f.code for f in found if f.level == "error" and KINDS[f.code].acceptable)
    example = (
        f"\nIf it is intended: accept: [{{finding: {next(iter(names))}, reason: ...}}] in the mixture." if names else ""
    )
    more = f"\n{len(errors) - 5} more errors; see `oxe-curate mixture check`." if len(errors) > 5 else ""
    raise ConfigError("\n".join(errors[:5]) + more + example)


def check_text(
    text: str,
    where: str,
    index: Index | None = None,
    samples: int | None = None,
    cards: Path | None = None,
    base: Path | None = None,
    statistics: Path | None = None,
    *,
    thorough: bool = False,
) -> list[Problem]:
    """Check the text of a mixture, errors first, then by line.

    Args:
        text: YAML.
        where: the file's name, with which the parser's messages start.
        index: None: sizes are the published ones, and versions are unknown.
        samples: number of training samples, for the checks of epochs.
        cards: a folder of the user's own cards.
        base: folder to which paths of image-text sources and bounds are relative; None: sources are not checked.
        statistics: a file that replaces the mixture's bounds.
        thorough: open every file of the image-text sources, also in object stores, instead of the first local one.

    Raises:
        DataError: the index is damaged.
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
        return in_order(findings)
    checker = _Checker(with_statistics(mixture, statistics), _entry_numbers(data), lines, index, cards)
    findings += checker.findings(samples, base)
    findings += _texts(mixture, lines, base, thorough)
    given = ("index" if index else "no index", *(["samples"] if samples else []))
    return in_order(accept(findings, mixture.accept, lines, given))


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


def _texts(mixture: Mixture, lines: Lines, base: Path | None, thorough: bool) -> Iterator[Problem]:
    """Image-text sources that cannot be read."""
    for i, entry in enumerate(mixture.texts if base is not None else ()):
        assert base is not None
        if reason := missing_file(entry, base, thorough):
            key = f"texts.{i}.path"
            advice = "Correct the path or the columns; a relative path is relative to the mixture file."
            yield Problem("error", "no_text_source", key, lines.of(key), entry.name, reason, advice)


class _Checker:
    """The checks of a mixture with a valid schema."""

    def __init__(
        self, mixture: Mixture, numbers: list[int], lines: Lines, index: Index | None, cards: Path | None
    ) -> None:
        self.mixture, self.index, self.lines, self.cards = mixture, index, lines, cards
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

    def findings(self, samples: int | None, base: Path | None) -> list[Problem]:
        found = [*self.unknown, *self._duplicates_by_alias()]
        for member in self.members:
            found += [*self._criterion(member), *self._version(member), *self._card(member)]
        faults = self._without_index(base) if self.index is None else self._with_index(self.index, base)
        found += self._of_faults(faults, {f.dataset for f in found if f.code in ("unknown_dataset", "duplicate")})
        reported = {f.dataset for f in found if f.code in ("counted_twice", "duplicate")}
        found += [*self._same_data(reported), *self._rates(), *self._licences()]
        if samples:
            found += self._epochs(breakdown(self.mixture, self.members, samples), samples)
        return found

    def _with_index(self, index: Index, base: Path | None) -> Iterator[Fault]:
        usable, faults = resolve_entries(self.mixture, index, self.cards)
        yield from faults
        yield from data_faults(self.mixture, index, usable, base, self.cards)

    def _without_index(self, base: Path | None) -> Iterator[Fault]:
        for member in self.members:
            if member.card.verdict != "fail":  # whose missing camera is reported as the criterion that it fails
                yield from cameras_missing(member.entry, member.card, self.mixture)
        yield from given_bounds(
            self.mixture, [(m.entry.name, (m.card.name, *m.card.aliases)) for m in self.members], base
        )[1]
        if not self.mixture.validation and not any(set(m.card.splits) - set(m.entry.splits) for m in self.members):
            message = "no episode is held out: validation is 0, and no data set has another split"
            advice = "Raise `validation`, or keep a split of the data for evaluation."
            yield Fault("no_held_out", "", "validation", message, advice, "warning")

    def _of_faults(self, faults: Iterable[Fault], known: set[str | None]) -> Iterator[Problem]:
        """The faults as findings, without those of entries that are reported already; absent data sets in one."""
        absent = []
        for fault in faults:
            if fault.code == "not_in_index":
                absent += [] if fault.name in known else [fault.name]
            elif fault.code != "duplicate" or fault.name not in known:
                key = self.keys[fault.name] if fault.key == "datasets" and fault.name else fault.key
                line = self.lines.of(key) or self.lines.of("datasets")
                yield Problem(fault.level, fault.code, key, line, fault.name or None, fault.message, fault.advice)
        if absent:
            message = f"{len(absent)} of {len(self.mixture.datasets)} data sets are not in the index: {_some(absent)}"
            advice = "Run filter on them, or remove them: tokenize needs every data set of the mixture."
            yield Problem("error", "not_in_index", "datasets", self.lines.of("datasets"), None, message, advice)

    def _same_data(self, reported: set[str | None]) -> Iterator[Problem]:
        """Data sets whose cards are the same, or copies or parts of one another."""
        before: dict[str, str] = {}
        for member in self.members:
            card, name = member.card.name, member.entry.name
            others, why = card_facts.SAME_DATA.get(card, ((), ""))
            other = next((before[o] for o in others if o in before), None)
            if card in before and member.dataset:
                other, why = before[card], f"both have the card {card}"
            before.setdefault(card, name)
            if other and name not in reported:
                message = f"{name} and {other} have the same data: {why}"
                yield self._entry("warning", "counted_twice", name, message, "Remove one of them.")

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
            kept_anyway = member.dataset is not None and bool(member.episodes)
            yield self._entry("warning" if kept_anyway else "error", "fails_criterion", name, message, advice)
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

    def _card(self, member: Member) -> Iterator[Problem]:
        card, name = member.card, member.entry.name
        if not card.language.keys:
            message = f"{name} has no instructions"
            yield self._entry("warning", "no_language", name, message, "Remove it, unless it is for pretraining only.")
        if card.verdict == "pass" and card_facts.gripper_polarity(card) == "undocumented":
            message = f"{name}: its card does not document which end of the gripper's range is open"
            advice = "Inspect a few of its episodes: an inverted gripper teaches the opposite."
            yield self._entry("warning", "gripper_polarity", name, message, advice)

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


__all__ = ["Problem", "check_file", "check_text", "has_errors", "refuse"]
