"""The groups scan-256 and scan-64: filter, statistics, tokenize, plain reads and other RLDS readers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks import make_shards, measure
from benchmarks.contenders import Bench, Contender, contenders
from benchmarks.rows import Anchor, Limit, Row, at_least, at_most, round_ratio, takes_part
from benchmarks.settings import Settings, say

MB = 1e6
SHARDS = 16


@dataclass(frozen=True)
class Comparison:
    """Two contenders, and the limit of their ratio.

    Attributes:
        of: "speed" or "time".
        limits: by image size in pixels; 0 for every size.
    """

    topic: str
    name: str
    anchor: str
    of: str
    limits: dict[int, Limit]
    cold: bool = False


COMPARISONS = (
    Comparison("scan", "filter", "TFDS, skipped decoding", "speed", {256: at_least(6)}),
    Comparison("scan", "filter", "raw read", "speed", {256: at_least(0.5)}),
    Comparison("scan", "filter", "raw read", "speed", {}, cold=True),
    Comparison("scan", "filter", "tf.data, records not parsed", "speed", {}),
    Comparison("scan", "filter", "TFDS, images decoded", "speed", {}),
    Comparison("scan", "filter, one worker", "filter, no Beam", "time", {0: at_most(1.3)}),
    Comparison("scan", "filter, Beam's DirectRunner", "filter, no Beam", "time", {0: at_most(1.3)}),
    Comparison("statistics", "statistics", "filter", "time", {0: at_most(1.2)}),
    Comparison("statistics", "statistics", "OpenVLA's loader, statistics", "speed", {256: at_least(20)}),
    Comparison("tokenize", "tokenize, one worker", "read + write", "speed", {256: at_least(0.5)}),
    Comparison("tokenize", "tokenize", "read + write, all cores", "speed", {256: at_least(0.4)}),
    Comparison("tokenize", "tokenize, one worker", "read + write", "speed", {}, cold=True),
    Comparison("tokenize", "tokenize", "read + write, all cores", "speed", {}, cold=True),
    Comparison("tokenize", "tokenize, one worker", "tokenize, no Beam", "time", {0: at_most(1.3)}),
    Comparison("tokenize", "tokenize, one worker", "OpenVLA's loader, statistics and tokens", "speed", {}),
    Comparison("tokenize", "tokenize, one worker", "OpenVLA's loader, samples", "speed", {}),
)
MEMORY = {"filter": "scan", "statistics": "statistics", "tokenize": "tokenize"}
MOST_MEMORY, MOST_TOUCHED = 1000, 5


def measure_all(bench: Bench, found: Sequence[Contender], rounds: int, *, cold: bool = False) -> None:
    """Let the contenders take turns; one that has used up its budget takes part in no further round."""
    bench.work.mkdir(parents=True, exist_ok=True)
    runs = bench.cold if cold else bench.warm
    for number in range(rounds):
        for contender in found:
            so_far = runs.setdefault(contender.name, [])
            if len(so_far) < number or not takes_part([m.process_seconds for m in so_far], bench.settings.budget):
                continue
            so_far.append(measure.run(contender.command(bench), bench.shards, cold=cold, log=bench.work / "log.txt"))
            kind = "cold" if cold else "warm"
            say(f"{kind} round {number + 1} of {rounds}, {contender.name}: {so_far[-1].seconds:.3g} s")


def compared(bench: Bench, what: Comparison, size: int) -> Row | None:
    """The row of a comparison; None unless both contenders ran."""
    ours, theirs = (bench.seconds(name, cold=what.cold) for name in (what.name, what.anchor))
    if not ours or not theirs:
        return None
    cpu = [bench.seconds(name, cold=what.cold, cpu=True) for name in (what.name, what.anchor)]
    speed = what.of == "speed"
    ratio, cpu_ratio = (
        round_ratio(their, our) if speed else round_ratio(our, their) for our, their in ((ours, theirs), cpu)
    )
    scaled = f"~{what.anchor}" if bench.share(what.anchor) < 1 else what.anchor
    anchor = Anchor(scaled, median(theirs), ratio, what.of, cpu_ratio)
    text = f"{what.name}, {size} px{', cold' if what.cold else ''}"
    limit = what.limits.get(size, what.limits.get(0))
    return Row(what.topic, text, median(ours), "s", (min(ours), max(ours)), anchor, limit)


def rows(bench: Bench, size: int) -> Iterator[Row]:
    """What the runs say."""
    for what in COMPARISONS:
        if row := compared(bench, what, size):
            yield row
    for name, topic in MEMORY.items():
        rates = [bench.steps / seconds for seconds in bench.seconds(name)]
        yield Row(topic, f"{name}, {size} px, rate", median(rates), "steps/s", (min(rates), max(rates)))
        peaks = [m.rss / MB for m in bench.warm[name]]
        note = f"anonymous {max(m.anonymous for m in bench.warm[name]) / MB:,.0f} MB"
        limit = at_most(MOST_MEMORY)
        yield Row(topic, f"{name}, {size} px, peak memory", max(peaks), "MB", None, None, limit, note)
    if bench.cold.get("filter"):
        touched = [100 * (m.touched or 0) for m in bench.cold["filter"]]
        limit_touched = at_most(MOST_TOUCHED) if size >= 256 else None
        name = f"filter, {size} px, cold: pages of the shards that it touches"
        yield Row("scan", name, median(touched), "%", limit=limit_touched)
    if difference := _difference(bench):
        yield Row("statistics", f"statistics, {size} px: largest difference from OpenVLA's", difference, "",
                  limit=at_most(1e-5), note="mean, std, min, max, q01, q99")  # fmt: skip


def _difference(bench: Bench) -> float | None:
    """The largest difference between our statistics and OpenVLA's; None if either is missing."""
    ours, theirs = (bench.warm.get(name) for name in ("statistics", "OpenVLA's loader, statistics"))
    if not ours or not theirs:
        return None
    a, b = ours[0].result["action"], theirs[0].result
    keys = ("mean", "std", "min", "max", "q01", "q99")
    return float(max(abs(x - y) for key in keys for x, y in zip(a[key], b[key], strict=True)))


def source_of(settings: Settings, size: int) -> Path:
    """The data set of an image size, made if it is missing."""
    kind = "bridge" if settings.shared in settings.base.parents else "drawn"
    folder = settings.data / f"{kind}-{size}px-{settings.gb:g}gb"
    return make_shards.make_dataset(folder, settings.base, gb=settings.gb, shards=SHARDS, size=size)


def measure_size(settings: Settings, size: int) -> Iterator[Row]:
    """The rows for images of one size."""
    source = source_of(settings, size)
    bench = Bench(source, settings.data / "work" / source.name, settings)
    found = contenders(settings, size)
    if not settings.peers:
        settings.skip("tf.data, TFDS", "no environment of the peers: make bench-peers")
    elif size >= 256 and not (settings.openvla and settings.dlimp):
        settings.skip("OpenVLA's loader", "no checkouts: OPENVLA=FOLDER DLIMP=FOLDER")
    measure_all(bench, found, settings.rounds)
    try:
        measure_all(bench, [c for c in found if c.cold], min(2, settings.rounds), cold=True)
    except RuntimeError as error:
        if "page cache" not in str(error):
            raise
        settings.skip("cold runs", str(error))
    bench.clean()
    yield from rows(bench, size)


def rows_256(settings: Settings) -> Iterator[Row]:
    """The group scan-256."""
    yield from measure_size(settings, 256)


def rows_64(settings: Settings) -> Iterator[Row]:
    """The group scan-64, on half as many bytes, which are still more steps."""
    yield from measure_size(replace(settings, gb=settings.gb / 2), 64)
