"""The tables of planted defects: recall per kind, recall per kind and source, clean episodes per source."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import report

AIM_RECALL, AIM_KINDS, AIM_CLEAN = 0.9, 0.9, 0.01


@dataclass
class Trial:
    """One kind in one source; the kind "" is the source itself, without defects.

    Attributes:
        planted: spoiled episodes.
        marked, dropped: of them, those that filter marks or drops, and those it drops, by configuration.
        by: configuration -> criterion -> spoiled episodes that it found.
        clean: episodes left clean.
        alarms, losses: of the clean ones, those marked or dropped, and those dropped, by configuration.
        alarms_by: configuration -> criterion -> clean episodes that it marked.
        missed: "split/position" of spoiled episodes that the last configuration does not mark.
        skipped: why nothing was planted.
    """

    source: str
    kind: str
    planted: int = 0
    clean: int = 0
    marked: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    by: dict[str, dict[str, int]] = field(default_factory=dict)
    alarms: dict[str, int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    alarms_by: dict[str, dict[str, int]] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    skipped: str = ""

    def line(self) -> str:
        """What it found, for the screen."""
        title = f"{self.source:16} {self.kind or '(clean)':24}"
        if self.skipped:
            return f"{title} -  {self.skipped}"
        found = [
            f"{name}: {self.marked[name]} marked, {self.dropped[name]} dropped of {self.planted}; "
            f"clean {self.alarms[name]}, {self.losses[name]} of {self.clean}"
            for name in self.marked
        ]
        by, alarms = _named(self.by["strict"]), _named(self.alarms_by["strict"])
        return f"{title} {' | '.join(found)} | {by}{' | of clean: ' if alarms else ''}{alarms}"


def _named(counts: Mapping[str, int], most: int = 6) -> str:
    return ", ".join(f"{criterion} {count}" for criterion, count in Counter(counts).most_common(most))


def write_report(
    out: Path, name: str, trials: Sequence[Trial], texts: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    """Write OUT/NAME.md and OUT/NAME.json; print the tables' main lines.

    Args:
        trials: of every source and kind.
        texts: kind -> what went wrong.
        facts: options and duration of the run.
    """
    machine = report.machine(out if out.exists() else Path.cwd())
    text = markdown(trials, texts, {"commit": machine["commit"], **facts})
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text)
    data = {"facts": {**facts, "machine": machine}, "kinds": dict(texts), "trials": [asdict(t) for t in trials]}
    (out / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    print(text.split("\n## ")[0])
    print(f"{out / name}.md")


def markdown(trials: Sequence[Trial], texts: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """The report."""
    planted = [trial for trial in trials if trial.kind and not trial.skipped]
    parts = [
        "# Planted defects\n",
        _INTRODUCTION.format(commit=facts["commit"], look=facts["look"] or "not used", seconds=facts["seconds"]),
        report.markdown(report.AIMS, [aim.cells() for aim in aims(trials)]) if planted else "",
        "\n" + groups_table(trials),
        "\n## Kinds\n",
        _KINDS,
        kinds_table(trials, texts),
        "\n## Recall of strict by source\n",
        "Marked or dropped, of those planted; empty where the kind cannot be planted.\n",
        sources_table(trials, texts),
        "\n## Clean episodes\n",
        _CLEAN,
        clean_table(trials),
        "\n## Not planted\n",
        skipped_table(trials),
    ]
    if facts["missing"]:
        parts.append(f"\nNot available when this was measured: {', '.join(facts['missing'])}.")
    return "\n".join(parts) + "\n"


_INTRODUCTION = """\
Commit {commit}, `--look` {look}, {seconds} s. `python -m benchmarks.defects --folder FOLDER` plants each kind into
about 15 % of the episodes of each source, runs `filter`, and counts what it says of the spoiled episodes that it did
not say of them before, and what it says of all others. `marked` includes `dropped`.
"""
_KINDS = (
    "Sums over the sources. `recall` is the share that strict marks or drops; `found by` counts episodes in strict.\n"
)
_CLEAN = """\
First the source without defects, then the clean episodes of all its planted sets, each judged once per set.
"""


def recalls(trials: Iterable[Trial], name: str, *, dropped: bool = False) -> dict[str, float]:
    """Kind -> share of the planted episodes that a configuration marks (or drops), over all sources."""
    planted, found = Counter[str](), Counter[str]()
    for trial in trials:
        if trial.kind and not trial.skipped:
            planted[trial.kind] += trial.planted
            found[trial.kind] += (trial.dropped if dropped else trial.marked)[name]
    return {kind: found[kind] / count for kind, count in planted.items()}


def clean_share(trials: Iterable[Trial], name: str, *, dropped: bool, untouched: bool) -> float:
    """Share of clean episodes that are marked or dropped; of the untouched sources, or of the planted sets."""
    chosen = [trial for trial in trials if bool(trial.kind) != untouched and not trial.skipped]
    total = sum(trial.clean for trial in chosen)
    return sum((trial.losses if dropped else trial.alarms)[name] for trial in chosen) / total if total else 0.0


def aims(trials: Sequence[Trial]) -> list[report.Aim]:
    """The aims of curation, and what was measured."""
    strict, default = recalls(trials, "strict", dropped=True), recalls(trials, "default")
    reached = [kind for kind, recall in strict.items() if recall >= AIM_RECALL]
    shown = [kind for kind in reached if default[kind] >= AIM_RECALL]
    share = 100 * len(reached) / len(strict)
    losses = {
        (name, untouched): 100 * clean_share(trials, name, dropped=True, untouched=untouched)
        for name in ("default", "strict")
        for untouched in (True, False)
    }
    alarms = 100 * clean_share(trials, "default", dropped=False, untouched=True)
    return [
        report.Aim(
            f"kinds that strict drops with recall {AIM_RECALL:g} ({len(reached)} of {len(strict)})",
            share, 100 * AIM_KINDS, True, " %",
        ),
        report.Aim("of these, kinds that default marks", 100 * len(shown) / max(1, len(reached)), 100, True, " %"),
        report.Aim("clean episodes dropped by strict, untouched sources", losses["strict", True], 1, False, " %"),
        report.Aim("clean episodes dropped by strict, planted sources", losses["strict", False], 1, False, " %"),
        report.Aim("clean episodes dropped by default, untouched sources", losses["default", True], 0, False, " %"),
        report.Aim("clean episodes dropped by default, planted sources", losses["default", False], 0, False, " %"),
        report.Aim("clean episodes marked by default, untouched sources", alarms, 1, False, " %"),
    ]  # fmt: skip


def groups_table(trials: Sequence[Trial]) -> str:
    """Kinds by the first word of their names: how many a configuration finds."""
    header = ["group", "kinds", "default marks 0.9", "strict drops 0.9", "mean recall of default", "of strict"]
    default, strict = recalls(trials, "default"), recalls(trials, "strict")
    dropped = recalls(trials, "strict", dropped=True)
    lines = []
    for group in dict.fromkeys(kind.partition("_")[0] for kind in default):
        mine = [kind for kind in default if kind.startswith(f"{group}_")]
        found = [str(sum(values[kind] >= AIM_RECALL for kind in mine)) for values in (default, dropped)]
        means = [f"{sum(values[kind] for kind in mine) / len(mine):.2f}" for values in (default, strict)]
        lines.append([group, str(len(mine)), *found, *means])
    return report.markdown(header, lines)


def kinds_table(trials: Sequence[Trial], texts: Mapping[str, str]) -> str:
    header = ["kind", "planted", "default marks", "default drops", "strict marks", "strict drops", "recall", "found by"]
    lines = []
    for kind, text in texts.items():
        mine = [trial for trial in trials if trial.kind == kind and not trial.skipped]
        planted = sum(trial.planted for trial in mine)
        if not planted:
            continue
        counts = [
            sum(values[name] for values in found)
            for name in ("default", "strict")
            for found in ([trial.marked for trial in mine], [trial.dropped for trial in mine])
        ]
        by = Counter[str]()
        for trial in mine:
            by.update(trial.by["strict"])
        lines.append([f"{kind}: {text}", str(planted), *map(str, counts), f"{counts[2] / planted:.2f}", _named(by, 4)])
    return report.markdown(header, lines)


def sources_table(trials: Sequence[Trial], texts: Mapping[str, str]) -> str:
    names = list(dict.fromkeys(trial.source for trial in trials))
    found = {(t.source, t.kind): f"{t.marked['strict']}/{t.planted}" for t in trials if t.kind and not t.skipped}
    lines = [[kind, *(found.get((name, kind), "") for name in names)] for kind in texts]
    return report.markdown(["kind", *names], [line for line in lines if any(line[1:])])


def clean_table(trials: Sequence[Trial]) -> str:
    header = ["source", "episodes", "default marks", "default drops", "strict marks", "strict drops", "by (strict)"]
    lines = []
    for source in dict.fromkeys(trial.source for trial in trials):
        for title, untouched in ((source, True), (f"{source}, in planted sets", False)):
            mine = [t for t in trials if t.source == source and bool(t.kind) != untouched and not t.skipped]
            if not mine:
                continue
            by = Counter[str]()
            for trial in mine:
                by.update(trial.alarms_by["strict"])
            cells = [
                sum((t.losses if dropped else t.alarms)[name] for t in mine)
                for name in ("default", "strict")
                for dropped in (False, True)
            ]
            lines.append([title, str(sum(t.clean for t in mine)), *map(str, cells), _named(by)])
    return report.markdown(header, lines)


def skipped_table(trials: Sequence[Trial]) -> str:
    """Source and reason -> kinds."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for trial in trials:
        if trial.skipped:
            reasons.setdefault((trial.source, trial.skipped), []).append(trial.kind)
    lines = [[source, reason, ", ".join(kinds)] for (source, reason), kinds in reasons.items()]
    return report.markdown(["source", "why", "kinds"], lines) if lines else "Everything was planted."
