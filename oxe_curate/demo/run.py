"""`oxe-curate demo`: write the data sets, filter, tokenize, decode one sample. It prints the commands it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.actions.bounds import read_statistics
from oxe_curate.actions.dimensions import DIMENSIONS
from oxe_curate.demo import mixture_text, write_demo
from oxe_curate.filter import show as filter_show
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.outputs import claim_output, hold_output
from oxe_curate.tokenize import show as tokenize_show
from oxe_curate.tokenize.manifest import STATISTICS, TOKENS
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from oxe_curate.ui import tables


def run_demo(out: Path, seed: int = 0) -> None:
    """Write the demo data sets to `out`, filter and tokenize them, and print the results.

    Finished parts of an earlier run are kept. Raises StorageError if `out` cannot be written.
    """
    claim_output(out, "demo", {})
    with hold_output(out, "demo"):
        _run(out, seed)


def _run(out: Path, seed: int) -> None:
    screen = tables.console()
    rlds, index, mixture, shards = out / "rlds", out / "index", out / "demo.yaml", out / "mixture"
    if not (out / ".written").exists():
        write_demo(rlds, seed)
        (out / ".written").touch()
    mixture.write_text(mixture_text(), encoding="utf-8")
    tables.show_command(screen, f"oxe-curate filter {rlds} --out {index}")
    screen.print(filter_show.filtered(run_filter(rlds, index, FilterOptions()).summaries))
    tables.show_command(screen, f"oxe-curate tokenize {mixture} --index {index} --out {shards}")
    screen.print(tokenize_show.tokenized(run_tokenize(mixture, index, shards, TokenizeOptions()).manifest))
    _show_sample(screen, shards)
    screen.print("Where to look next", style="bold")
    for path, what in (
        (index / "index.json", "episodes and steps seen, kept and dropped"),
        (shards / "manifest.json", "hashes, shares, round-trip errors"),
        (shards / "train-*.parquet", 'with images: datasets.load_dataset("parquet", data_files=...)'),
        (mixture, "change a weight, and run tokenize with another --out"),
    ):
        screen.print(f"  {path!s:34} {what}", markup=False)


def _show_sample(screen: Console, shards: Path) -> None:
    """Decode the first row of the first shard: bins, tokens, and the motion in physical units."""
    path = sorted(shards.glob("train-*.parquet"))[0]
    row: dict[str, Any] = pq.ParquetFile(path).read_row_group(0).slice(0, 1).to_pylist()[0]
    tokens = ActionTokens.read(shards / TOKENS)
    bins = np.array(row["bins"][0], np.uint8)
    ids = tokens.ids(bins)
    action = read_statistics(shards / STATISTICS)[row["dataset"]].denormalize(tokens.decode(ids))
    screen.print("One sample, decoded", style="bold")
    screen.print(
        f"  {row['sample_id']}\n  “{row['instruction']}”, {len(row['image_primary']['bytes']):,} bytes of JPEG"
    )
    screen.print(f"  bins   {' '.join(f'{b:5d}' for b in bins)}\n  tokens {' '.join(f'{i:5d}' for i in ids)}")
    motion = [
        f"{name} {value * factor * (1000 if unit == 'm' else 1):.1f} {'mm' if unit == 'm' else unit}".rstrip()
        for (name, unit, factor), value in zip(DIMENSIONS, action, strict=True)
    ]
    screen.print(f"  motion {', '.join(motion)}\n")
