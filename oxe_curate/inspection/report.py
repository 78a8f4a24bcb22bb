"""Report on a data set on disk: cameras, ranges, instructions, lengths, flags, and findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import ConfigError
from oxe_curate.inspection.conventions import Conventions, detect, detect_cameras
from oxe_curate.inspection.finding import Finding
from oxe_curate.inspection.questions import open_questions
from oxe_curate.inspection.sample import Sample, SampledCamera, read_sample
from oxe_curate.inspection.series import WIDEST, as_columns
from oxe_curate.inspection.vision import black_share
from oxe_curate.registry.text import from_codepoints, strings
from oxe_curate.rlds.dataset import RldsDataset, find
from oxe_curate.storage import Folder

SAMPLE_EPISODES = 32
"""Default number of episodes to read."""
_BOOKKEEPING = {"is_first", "is_last", "is_terminal", "discount", "reward"}
INSTRUCTION_WORDS = ("instruction", "language", "task", "goal", "text", "command")
"""Parts of names of features with instructions, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Range:
    """One number per step, over all steps read; NaN and infinities are counted but otherwise ignored.

    Attributes:
        constant: whether it is equal at every step.
        not_finite: number of values that are NaN or infinite.
    """

    low: float
    q01: float
    mean: float
    q99: float
    high: float
    constant: bool
    not_finite: int


@dataclass(frozen=True, slots=True)
class NumberFeature:
    """A numeric step feature, with a range for each column."""

    key: str
    dtype: str
    shape: tuple[int | None, ...]
    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class CameraFeature:
    """A camera; `black`, `missing` and `unreadable` are shares of the frames checked, 0 to 1."""

    key: str
    shape: tuple[int | None, ...]
    encoding: str
    dtype: str
    looked_at: int
    black: float
    missing: float
    unreadable: float


@dataclass(frozen=True, slots=True)
class TextFeature:
    """A step feature with texts.

    Attributes:
        distinct: number of distinct non-empty texts over all steps read.
        empty: share of episodes without any text.
        samples: the first few.
    """

    key: str
    kind: Literal["string", "codepoints"]
    distinct: int
    empty: float
    samples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """The result of `inspect_dataset`.

    Attributes:
        splits: name -> {"episodes": n, "shards": n}, by dataset_info.json.
        read: the episodes that were read, "split/shard/record".
        lengths: steps of each episode read.
        flags: boolean metadata -> share of true among the episodes read.
        metadata: all features outside the steps -> type.
        not_read: step features that were not read -> reason.
        ignored: folders of the data set whose names are not those of versions.
        conventions: the meaning of the columns; its findings are also in `findings`.
        sample: the sampled data, for thumbnails; not part of the JSON.
    """

    name: str
    version: str
    path: str
    splits: Mapping[str, Mapping[str, int]]
    num_bytes: int
    read: tuple[str, ...]
    lengths: tuple[int, ...]
    cameras: tuple[CameraFeature, ...]
    actions: tuple[NumberFeature, ...]
    states: tuple[NumberFeature, ...]
    others: tuple[NumberFeature, ...]
    texts: tuple[TextFeature, ...]
    flags: Mapping[str, float]
    metadata: Mapping[str, str]
    not_read: Mapping[str, str]
    ignored: tuple[str, ...]
    conventions: Conventions
    findings: tuple[Finding, ...]
    sample: Sample

    def to_json(self) -> dict[str, Any]:
        """Everything except the frames, ready for json.dumps."""
        parts = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("sample", "conventions")
        }
        listed = ("cameras", "actions", "states", "others", "texts", "findings")
        out = {name: [asdict(item) for item in value] if name in listed else value for name, value in parts.items()}
        c = self.conventions
        out["columns"] = {
            name: None if getattr(c, name) is None else str(getattr(c, name))
            for name in ("position", "rotation", "gripper", "state_position", "state_rotation", "aperture")
        }
        out["open_questions"] = open_questions(c)
        return out


def inspect_dataset(path: str | Path, *, episodes: int = SAMPLE_EPISODES, seed: int = 0) -> Inspection:
    """Read features.json and a few episodes of the data set at `path`, and detect its conventions.

    Args:
        path: a TFDS version folder, or a folder above exactly one: local, gs:// or s3://.
        episodes: number of episodes to read, spread over the shards.
        seed: selects them.

    Raises:
        ConfigError: the folder contains no data set, or more than one.
        DataError, CorruptError: it cannot be read.
    """
    found = find(Folder.of(path))
    if len(found) > 1:
        names = ", ".join(f"{d.name}/{d.version}" for d in found[:8])
        raise ConfigError(f"{path} contains {len(found)} data sets ({names}); give the folder of one of them")
    return report_of(found[0], read_sample(found[0], episodes, seed))


def report_of(dataset: RldsDataset, sample: Sample, control_hz: float | None = None) -> Inspection:
    """Summarise a sample; `control_hz`, if known, distinguishes a velocity from a scaled displacement."""
    conventions = detect(sample.episodes, control_hz)
    looks = detect_cameras(sample.cameras, sample.episodes, conventions) + flags_against_frames(sample)
    numbers = [_number(key, sample) for key in _number_keys(sample)]
    shards: dict[str, dict[str, int]] = {name: {"episodes": 0, "shards": 0} for name in dataset.split_names}
    for shard in dataset.shards():
        shards[shard.split]["episodes"] += shard.take
        shards[shard.split]["shards"] += 1
    first = sample.flags[0] if sample.flags else {}
    return Inspection(
        name=dataset.name, version=dataset.version, path=f"{dataset.source}/{dataset.path}", splits=shards,
        num_bytes=dataset.num_bytes, read=sample.ids,
        lengths=tuple(len(next(iter(steps.values()))) if steps else 0 for steps in sample.episodes),
        cameras=tuple(_camera(camera) for camera in sample.cameras),
        actions=tuple(n for n in numbers if n.key.startswith("action")),
        states=tuple(n for n in numbers if n.key.startswith("observation/")),
        others=tuple(n for n in numbers if not n.key.startswith(("action", "observation/"))),
        texts=texts_of(sample),
        flags={key: float(np.mean([flags.get(key, False) for flags in sample.flags])) for key in first},
        metadata=sample.metadata, not_read=sample.not_read, ignored=dataset.ignored,
        conventions=conventions,
        findings=(*conventions.findings, *looks), sample=sample,
    )  # fmt: skip


def flags_against_frames(sample: Sample) -> list[Finding]:
    """Does a flag such as episode_metadata/has_image_0 match the camera's frames?"""
    found = []
    for key in sample.flags[0] if sample.flags else ():
        name = key.rsplit("/", 1)[-1].removeprefix("has_")
        camera = next((c for c in sample.cameras if c.key.rsplit("/", 1)[-1] == name), None)
        if camera is None or not camera.frames or not name:
            continue
        given = [flags[key] for flags in sample.flags[: len(camera.frames)]]
        shows = [len(f) > 0 and black_share([f]) < 0.5 for f in camera.frames]
        wrong = sum(a != b for a, b in zip(given, shows, strict=True))
        why = f"true in {sum(given)} of {len(shows)} episodes; {sum(shows)} have frames that are not black"
        answer = "yes" if wrong == 0 else "no" if wrong > len(shows) / 2 else "sometimes"
        evidence = {"true": sum(given), "shown": sum(shows), "episodes": len(shows)}
        found.append(Finding(f"does {key} match the frames?", answer, 0.95, why, evidence))
    return found


def _number_keys(sample: Sample) -> list[str]:
    steps = sample.episodes[0]
    return [
        key
        for key, leaf in sorted(sample.steps.items())
        if key in steps and leaf.kind == "number" and leaf.width <= WIDEST and key not in _BOOKKEEPING
    ]


def _number(key: str, sample: Sample) -> NumberFeature:
    leaf = sample.steps[key]
    x = np.concatenate([as_columns(steps[key]) for steps in sample.episodes])
    return NumberFeature(key, str(leaf.dtype), leaf.shape, tuple(range_of(column) for column in x.T))


def range_of(x: NDArray[np.float64]) -> Range:
    """The range of one column, (n,)."""
    good = x[np.isfinite(x)]
    if not len(good):
        nan = float("nan")
        return Range(nan, nan, nan, nan, nan, True, len(x))
    q01, q99 = np.quantile(good, [0.01, 0.99])
    low, high = float(good.min()), float(good.max())
    return Range(low, float(q01), float(good.mean()), float(q99), high, low == high, len(x) - len(good))


def _camera(camera: SampledCamera) -> CameraFeature:
    total = max(camera.looked_at, 1)
    return CameraFeature(
        camera.key, camera.shape, camera.encoding, camera.dtype, camera.looked_at,
        round(black_share(camera.frames), 4), camera.missing / total, camera.unreadable / total,
    )  # fmt: skip


def not_usable(report: Inspection, words: tuple[str, ...]) -> str:
    """The step features with such a name that were not read, and why: "; not usable: KEY (why), ...", or ""."""
    found = [f"{key} ({why})" for key, why in report.not_read.items() if any(word in key.lower() for word in words)]
    return f"; not usable: {', '.join(found)}" if found else ""


def texts_of(sample: Sample) -> tuple[TextFeature, ...]:
    """Step features with texts, the likeliest instruction first: by name, then by the share of episodes with a text."""
    found = []
    for key, leaf in sample.steps.items():
        if key not in sample.episodes[0]:
            continue
        arrays = [steps[key] for steps in sample.episodes]
        if leaf.dtype == object:
            texts = [strings(key, a) for a in arrays]
            found.append(_text(key, "string", [list(dict.fromkeys(_decode(v) for v in values)) for values in texts]))
        elif leaf.dtype.kind in "iu" and len(leaf.shape) == 1 and leaf.width >= 16 and looks_like_text(arrays):
            rows = [np.unique(np.asarray(a, np.int32), axis=0) for a in arrays]
            found.append(_text(key, "codepoints", [[from_codepoints(row) for row in r] for r in rows]))
    return tuple(sorted(found, key=lambda t: (_unlikely(t.key), t.empty, len(t.key), t.key)))


def _unlikely(key: str) -> int:
    name = key.rsplit("/", 1)[-1]
    rank = next((i for i, word in enumerate(INSTRUCTION_WORDS) if word in name), len(INSTRUCTION_WORDS))
    return rank + 3 * ("structured" in name)


def looks_like_text(arrays: list[NDArray[Any]]) -> bool:
    """Whether integers are Unicode code points: in range, zero-padded at the end, and mostly letters."""
    x = np.concatenate(arrays)
    if not len(x) or x.min() < 0 or x.max() >= 0x110000 or not (x != 0).any():
        return False
    padded = (np.diff((x == 0).astype(np.int8), axis=1) >= 0).all()
    used = x[x != 0]
    letters = ((used >= 97) & (used <= 122)) | (used == 32) | (used > 127)
    return bool(padded and letters.mean() > 0.6)


def _text(key: str, kind: Literal["string", "codepoints"], texts: list[list[str]]) -> TextFeature:
    distinct = list(dict.fromkeys(text for episode in texts for text in episode if text))
    empty = float(np.mean([not any(episode) for episode in texts]))
    return TextFeature(key, kind, len(distinct), round(empty, 4), tuple(distinct[:5]))


def _decode(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
