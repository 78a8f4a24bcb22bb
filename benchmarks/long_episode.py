"""The group long: memory at the limits of the data, one episode of 20,000 steps and frames of 8 MB."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import scale, scale_source
from benchmarks.rows import Row, at_most
from benchmarks.settings import Settings

MB = 1e6
STEPS, SIDE = 20_000, 1_640


def rows(settings: Settings) -> Iterator[Row]:
    """Filter and tokenize both, each in a process of its own."""
    folder = settings.data / "limits"
    folder.mkdir(parents=True, exist_ok=True)
    steps = STEPS // 10 if settings.quick else STEPS
    scale_source.long_episode(folder / "long", steps)
    scale_source.large_frames(folder / "large", SIDE)
    texts = {
        "long_episode": f"filter, and tokenize to 224 px, of one episode of {steps:,} steps",
        "large_frames": "filter, tokenize and the training reader, frames of 8 MB",
    }
    for name, bound in (("long_episode", 1000), ("large_frames", 2000)):
        figures = scale.measured(name, folder)
        if "failed" in figures:
            raise RuntimeError(f"{name}: {figures['failed']}")
        note = f"anonymous {figures['anonymous'] / MB:,.0f} MB"
        yield Row("scale", f"{texts[name]}: peak memory", figures["rss"] / MB, "MB", limit=at_most(bound), note=note)
        yield Row("scale", f"{texts[name]}: time", figures["seconds"], "s", note=f"processor {figures['cpu']:.3g} s")
