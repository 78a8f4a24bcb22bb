"""The group resize: tokenize with every image resized from 256 to 224 px, compared with Pillow on the same images.

    python -m benchmarks.resizing MIXTURE        # Pillow's part: one line of JSON

MIXTURE is the folder of a mixture whose images were copied.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pyarrow.parquet as pq
from PIL import Image

from benchmarks import make_shards, scan
from benchmarks.baselines import used
from benchmarks.contenders import Bench, Contender
from benchmarks.rows import Anchor, Row, at_least, at_most, round_ratio
from benchmarks.settings import Settings

SIZE, QUALITY = 224, 95
RATE, MEMORY = 700, 600
MB = 1e6
ONE, ALL, PILLOW = "tokenize to 224 px, one worker", "tokenize to 224 px, all cores", "Pillow on the same images"


def with_pillow(data: bytes) -> bytes:
    """Decode, resize and encode an image as tokenize does: Lanczos, quality 95, full colour resolution."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        resized = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    resized.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def main() -> None:
    start, before, frames, written = time.perf_counter(), used(), 0, 0
    for path in sorted(Path(sys.argv[1]).glob("*-of-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(256, columns=["image_primary"]):
            for value in batch.column(0).field("bytes"):
                written += len(with_pillow(value.as_py()))
                frames += 1
    spent = {"seconds": time.perf_counter() - start, "cpu": used() - before}
    print(json.dumps({**spent, "rows": frames, "written": written}))


def rows(settings: Settings) -> Iterator[Row]:
    """On a quarter of the data of scan-256."""
    whole = scan.source_of(settings, 256)
    quarter = scan.SHARDS // 4
    source = make_shards.link_part(whole, settings.data / f"{whole.name}-first-{quarter}", settings.base, quarter)
    bench = Bench(source, settings.data / "work" / "resize", settings)
    scan.measure_all(bench, [Contender("filter", lambda b: b.product("filter", b.source, b.output("index")))], 1)
    scan.measure_all(bench, [Contender("copied", lambda b: b.tokenize("copied"))], 1)
    resized = ("--image-size", SIZE)
    found = [
        Contender(ONE, lambda b: b.tokenize("resized-one", *resized, "--workers", 1)),
        Contender(ALL, lambda b: b.tokenize("resized", *resized)),
        Contender(PILLOW, lambda b: [sys.executable, "-m", "benchmarks.resizing", str(b.work / "copied")]),
    ]
    scan.measure_all(bench, found, settings.rounds)
    yield from _rows(bench)
    bench.clean()


def _rows(bench: Bench) -> Iterator[Row]:
    count = {name: runs[0].result["rows"] for name, runs in bench.warm.items() if "rows" in runs[0].result}
    rate = {name: [n / seconds for seconds in bench.seconds(name)] for name, n in count.items()}
    cpu_rate = {name: [n / seconds for seconds in bench.seconds(name, cpu=True)] for name, n in count.items()}
    core = cpu_rate[ONE]
    what, spread = f"{ONE}, from 256 px: per second of processor time", (min(core), max(core))
    yield Row("resize", what, median(core), "frames/s", spread, limit=at_least(RATE))
    for anchor, name in ((PILLOW, ONE), (ONE, ALL)):
        ratio, cpu_ratio = (round_ratio(of[name], of[anchor]) for of in (rate, cpu_rate))
        compared = Anchor(anchor, median(rate[anchor]), ratio, "speed", cpu_ratio)
        spread = (min(rate[name]), max(rate[name]))
        yield Row("resize", f"{name}, from 256 px", median(rate[name]), "frames/s", spread, compared)
    for name in (ONE, ALL):
        peak = max(m.rss for m in bench.warm[name]) / MB
        note = f"anonymous {max(m.anonymous for m in bench.warm[name]) / MB:,.0f} MB"
        yield Row("resize", f"{name}: peak memory", peak, "MB", limit=at_most(MEMORY), note=note)


if __name__ == "__main__":
    main()
