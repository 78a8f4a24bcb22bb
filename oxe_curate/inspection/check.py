"""Check a card against the data: compare its statements with the detectors' findings.

Two things are checked: the data as stored (cameras, texts, the native action), and the actions that the card's recipe
produces, which must be displacements with a gripper of 1 = open.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from oxe_curate import registry
from oxe_curate.episode import Steps
from oxe_curate.errors import ConfigError, DataError, did_you_mean
from oxe_curate.inspection import gripper, matching, motion
from oxe_curate.inspection.finding import Finding
from oxe_curate.inspection.leftovers import ARMS_QUESTION, JOINT_QUESTION
from oxe_curate.inspection.report import SAMPLE_EPISODES, CameraFeature, Inspection, report_of
from oxe_curate.inspection.sample import read_sample
from oxe_curate.inspection.series import Columns, number_keys, pooled
from oxe_curate.quality.action_facts import measure_actions
from oxe_curate.quality.findings import CardFacts, DataFinding
from oxe_curate.quality.plausibility import judge_actions
from oxe_curate.registry.card import THIRD_PERSON, Camera, DatasetCard, read_card
from oxe_curate.registry.features import check_features
from oxe_curate.rlds.dataset import RldsDataset, find
from oxe_curate.rlds.leaf import camera_key, leaves
from oxe_curate.storage import Folder

CardVerdict = Literal["agrees", "contradicts", "undecided"]
_ENOUGH = 0.5
"""Confidence from which a finding counts."""
_KINDS = {
    "EEF_POS": ("delta", "scaled delta"), "EEF_OSC": ("delta", "scaled delta"),
    "EEF_VEL": ("velocity", "scaled delta", "delta"), "EEF_POSE": ("absolute",), "EEF_GOAL": ("absolute",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """One question with both answers, and whether they agree.

    Attributes:
        confidence: of the data's answer, 0 to 1.
        verdict: "undecided" if the confidence is below `_ENOUGH`.
    """

    question: str
    card: str
    data: str
    confidence: float
    why: str
    verdict: CardVerdict


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of `check_dataset`.

    Attributes:
        findings: what is implausible about the actions that the recipe makes.
    """

    card: str
    dataset: str
    recipe: str
    episodes: int
    comparisons: tuple[Comparison, ...]
    findings: tuple[DataFinding, ...] = ()

    @property
    def fails(self) -> bool:
        """Whether the data contradict the card, or its actions are wrong for training."""
        return bool(self.contradictions) or any(finding.severity == "error" for finding in self.findings)

    @property
    def contradictions(self) -> tuple[Comparison, ...]:
        """Comparisons in which the data contradict the card."""
        return tuple(c for c in self.comparisons if c.verdict == "contradicts")

    def to_json(self) -> dict[str, Any]:
        """Return a dict for json.dumps."""
        return asdict(self)


def check_dataset(
    card: str | Path,
    source: str | Path,
    *,
    recipe: str | None = None,
    cards_dir: Path | None = None,
    episodes: int = SAMPLE_EPISODES,
    seed: int = 0,
) -> Checked:
    """Run the detectors on a data set and compare the findings with its card.

    Args:
        card: a card's name or alias, or the path of a card (ending in .yaml).
        source: the folder with the data sets, or the data set's own folder.
        recipe: one of the card's recipes; default: `openvla`, else the first one.
        cards_dir: the user's own cards.
        episodes: number of episodes to read.
        seed: selects them.

    Raises:
        ConfigError: unknown card, recipe or data set.
        DataError, CorruptError: the data cannot be read.
    """
    path = Path(card)
    known = read_card(path) if path.suffix in (".yaml", ".yml") else registry.load(str(card), cards_dir)
    dataset = find_for(known, Folder.of(source))
    if recipe is None and known.recipes:
        recipe = "openvla" if "openvla" in known.recipes else next(iter(known.recipes))
    elif recipe is not None:
        known.recipe(recipe)
    report = report_of(dataset, read_sample(dataset, episodes, seed), known.control_hz)
    comparisons = compare(known, dataset, report, recipe)
    return Checked(
        known.name, dataset.label, recipe or "", len(report.read), comparisons, _implausible(known, report, recipe)
    )


def _implausible(card: DatasetCard, report: Inspection, recipe: str | None) -> tuple[DataFinding, ...]:
    """Judge the actions of the sample, like `filter` those of the index; none if the recipe does not run."""
    if recipe is None:
        return ()
    try:
        found = [t for t in (card.standardize(steps, recipe) for steps in report.sample.episodes) if len(t)]
    except (DataError, ConfigError):
        return ()  # `compare` reports it
    if not found:
        return ()
    starts = np.concatenate([[0], np.cumsum([len(t) for t in found])]).astype(np.int64)
    widths = {t.proprio.shape[1] for t in found}
    proprio = np.concatenate([t.proprio for t in found]) if len(widths) == 1 else None
    facts = measure_actions(np.concatenate([t.action for t in found]), starts, proprio)
    return tuple(judge_actions(facts, CardFacts.of(card, recipe)))


def find_for(card: DatasetCard, source: Folder) -> RldsDataset:
    """Find the data set of a card: by name or alias, or the only one. Raises ConfigError."""
    everything = find(source)
    names = {card.name, *card.aliases}
    matching = [d for d in everything if d.name in names or d.name.split("/")[0] in names]
    if matching:
        return matching[0]
    if len(everything) == 1:
        return everything[0]
    found = [d.name for d in everything]
    raise ConfigError(f"{source} contains no data set for card {card.name!r}. {did_you_mean(card.name, found)}")


def compare(card: DatasetCard, dataset: RldsDataset, report: Inspection, recipe: str | None) -> tuple[Comparison, ...]:
    """Return all comparisons; those of the recipe's actions only if the recipe can run."""
    found, fits = _structure(card, dataset, recipe)
    steps, _ = leaves(dataset.features)
    for key, camera in card.cameras.items():
        seen = next((c for c in report.cameras if c.key == camera_key(key, steps)), None)
        found += _camera(camera, seen, report) if seen else []
    listed = {camera_key(key, steps) for key in card.cameras}
    for unlisted in sorted(c.key for c in report.cameras if c.key not in listed):
        found.append(_stated(f"camera {unlisted}", "not listed", "present", "features.json has this image feature"))
    found += _language(card, report)
    found += _episode_filters(card, report)
    found += _native(card, report)
    found += [Comparison("open question of the card", "open", "–", 0.0, q, "undecided") for q in card.open_questions]
    if fits and recipe is not None:
        found += _standardised(card, recipe, report)
    return tuple(found)


def _stated(question: str, card: str, data: str, why: str) -> Comparison:
    """A contradiction of facts."""
    return Comparison(question, card, data, 1.0, why, "contradicts")


def _judge(question: str, card: str, finding: Finding, agrees: bool) -> Comparison:
    verdict: CardVerdict = "undecided"
    if finding.known:
        counts = finding.confidence >= _ENOUGH
        verdict = "undecided" if not counts else "agrees" if agrees else "contradicts"
    return Comparison(question, card, finding.answer, finding.confidence, finding.why, verdict)


def _structure(card: DatasetCard, dataset: RldsDataset, recipe: str | None) -> tuple[list[Comparison], bool]:
    """Compare features.json with the keys that the card reads; and whether the recipe can run."""
    steps, _ = leaves(dataset.features)
    question = "does the card match features.json?"
    try:
        remarks = check_features(card, {key: leaf.shape for key, leaf in steps.items()}, "features.json", recipe)
    except ConfigError as error:
        return [_stated(question, "reads it", "does not match", line) for line in str(error).splitlines()], False
    if not remarks:
        return [Comparison(question, "reads it", "matches", 1.0, "every key and column exists", "agrees")], True
    return [_stated(question, "listed", "missing", remark) for remark in remarks], True


def _camera(camera: Camera, seen: CameraFeature, report: Inspection) -> list[Comparison]:
    found = []
    if camera.encoding != "unspecified" and seen.encoding != "unspecified":
        agrees = camera.encoding == seen.encoding
        bytes_ = Finding("", seen.encoding, 1.0, "from the first bytes of its frames")
        found.append(_judge(f"encoding of {seen.key}", camera.encoding, bytes_, agrees))
    if camera.shape and tuple(seen.shape) != camera.shape:
        shape, why = "x".join(map(str, seen.shape)), "a different size suggests a resized copy, not a wrong card"
        found.append(Comparison(f"size of {seen.key}", "x".join(map(str, camera.shape)), shape, 1.0, why, "undecided"))
    empty = seen.black + seen.missing + seen.unreadable
    if camera.role != "none" and seen.looked_at and empty > 0.9:
        why = f"{100 * seen.black:.0f} % black, {100 * seen.missing:.0f} % missing of {seen.looked_at} frames"
        verdict: CardVerdict = "contradicts" if camera.role == "primary" else "undecided"
        found.append(Comparison(f"does {seen.key} show an image?", camera.role, "empty", 0.95, why, verdict))
    for finding in report.findings:
        if finding.question == f"is {seen.key} a wrist camera?" and camera.role in (*THIRD_PERSON, "wrist"):
            expected = "wrist" if camera.role == "wrist" else "third-person"
            if camera.note:
                finding = replace(finding, why=f"{finding.why} (the card notes: {camera.note})")
            found.append(_judge(f"where is {seen.key} mounted?", camera.role, finding, finding.answer == expected))
        if finding.question == f"are red and blue swapped in {seen.key}?":
            agrees = finding.answer == camera.channels
            found.append(_judge(f"channels of {seen.key}", camera.channels, finding, agrees))
    return found


def _language(card: DatasetCard, report: Inspection) -> list[Comparison]:
    found = []
    texts = {t.key: t for t in report.texts}
    present = [texts[key] for key in card.language.keys if key in texts]
    question = "where is the instruction?"
    given = ", ".join(card.language.keys) or "nowhere"
    if card.language.keys and not present:
        found.append(_stated(question, given, "no text", f"step features with texts: {', '.join(texts) or 'none'}"))
    elif present:
        why = f"{present[0].distinct} texts in {len(report.read)} episodes, {100 * present[0].empty:.0f} % without one"
        empty = all(t.distinct == 0 for t in present)
        verdict: CardVerdict = "contradicts" if empty else "agrees"
        found.append(Comparison(question, given, "empty" if empty else "present", 0.95, why, verdict))
        if present[0].kind != card.language.kind:
            found.append(_stated("text encoding", card.language.kind, present[0].kind, f"the type of {present[0].key}"))
    elif any(t.distinct for t in report.texts):
        likely = report.texts[0]
        found.append(Comparison(question, given, likely.key, 0.4, f"example: {likely.samples[:1]}", "undecided"))
    return found


def _episode_filters(card: DatasetCard, report: Inspection) -> list[Comparison]:
    found = []
    for rule in card.episode_filters:
        names = {rule.field, f"episode_metadata/{rule.field}"}
        if not names & set(report.metadata):
            known = ", ".join(report.metadata) or "none"
            found.append(
                _stated(f"episode filter {rule.field}", "present", "missing", f"features outside the steps: {known}")
            )
    return found


def _native(card: DatasetCard, report: Inspection) -> list[Comparison]:
    """Compare the stored action with action_encoding, and the rate."""
    found = []
    c = report.conventions
    kind = c.of(f"what does {c.position} mean?") if c.position else None
    expected = _KINDS.get(card.action_encoding)
    joints = c.of(JOINT_QUESTION)
    if (two := c.of(ARMS_QUESTION)) and card.arms == "single":
        found.append(_judge("arms", card.arms, two, False))
    if joints and card.is_end_effector and c.position and _reads(card, c.position.key):
        found.append(_judge("native action space", card.action_encoding, joints, False))
    elif kind and expected and kind.answer != "constant":
        found.append(_judge("native action", card.action_encoding, kind, kind.answer in expected))
    rate = c.of("what is the control rate")
    if rate and rate.known and card.control_hz:
        agrees = 0.8 < float(rate.answer) / card.control_hz < 1.25
        found.append(_judge("control rate", f"{card.control_hz:g}", rate, agrees))
    return found


def _reads(card: DatasetCard, key: str) -> bool:
    return any(piece.src == key for recipe in card.recipes.values() for _, piece in recipe.pieces())


def _standardised(card: DatasetCard, name: str, report: Inspection) -> list[Comparison]:
    """Check the recipe's actions: displacement, gripper, quaternion order, idle first step."""
    episodes: list[Steps] = []
    for steps in report.sample.episodes:
        try:
            t = card.standardize(steps, name)
        except DataError as error:
            return [_stated(f"does the recipe {name} run?", "yes", "no", str(error))]
        states = {key: x[t.frame_index] for key, x in steps.items() if key.startswith("observation/")}
        if len(t) > 2:
            episodes.append({"action": t.action.astype(np.float64), **states})
    if not episodes:
        return []
    recipe, found = card.recipe(name), []
    states_of = number_keys(episodes, "observation/")
    made = any(piece.src and piece.src.startswith("observation/") for piece in recipe.xyz)
    matches = [m for s in states_of for m in matching.match(episodes, Columns("action", 0, 3), s)]
    best = max(matches, key=lambda m: m.r, default=None)
    moved = best.state if best and best.r >= matching.SURE else None
    if best and moved and not made:
        kind = motion.kind_of(episodes, best, card.control_hz)
        agrees = kind.answer in ("delta", "scaled delta", "velocity")
        found.append(_judge(f"xyz of recipe {name}", "displacement", kind, agrees))
    found += _standardised_gripper(episodes, name, states_of, moved)
    for piece in recipe.rpy:
        for operation in piece.ops:
            order = report.conventions.of(f"in which order is the quaternion {piece.src}")
            if operation.op == "euler_from_quat" and order:
                expected = str(operation.parameters.get("order", "xyzw"))
                found.append(_judge(f"order of the quaternion {piece.src}", expected, order, order.answer == expected))
    idle = report.conventions.of("is the first step idle")
    if idle and idle.answer == "yes" and recipe.trim.first == 0:
        why = f"{idle.why}; the recipe keeps the step"
        found.append(Comparison("first step", "kept", "idle", idle.confidence, why, "undecided"))
    elif idle and recipe.trim.first:
        data = replace(idle, answer={"yes": "idle", "no": "moves"}.get(idle.answer, idle.answer))
        found.append(_judge("first step", "dropped as idle", data, idle.answer == "yes"))
    return found


def _standardised_gripper(
    episodes: list[Steps], name: str, states: list[Columns], moved: Columns | None
) -> list[Comparison]:
    command = Columns("action", 6, 7)
    x = pooled(episodes, command)[:, 0]
    form = gripper.command_form(episodes, command)
    inside = bool(len(x) and x.min() >= -0.05 and x.max() <= 1.05)
    span = Finding("", f"{x.min():.3g} to {x.max():.3g}" if len(x) else "unknown", 0.95, form.why)
    found = [_judge(f"gripper range of recipe {name}", "0 to 1", span, inside)]
    if form.answer == "constant":
        return found
    relative = form.answer == "relative"
    aperture = gripper.find_aperture(episodes, command, states, [moved] if moved else [], relative=relative)
    sign = gripper.polarity(episodes, command, aperture, relative=relative)
    return [*found, _judge(f"gripper of recipe {name}", "1 = open", sign, sign.answer == "high opens")]
