"""What `tokenize` prints: rows and shares per data set, what binning loses, and the action tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.text import Text

from oxe_curate.tokenize.sources import REFERENCE
from oxe_curate.ui.tables import Column, ResultTable

_AXES = ("x mm", "y mm", "z mm", "roll °", "pitch °", "yaw °", "gripper")


def tokenized(manifest: Mapping[str, Any]) -> Group:
    """Rows and shares per data set, and the error of binning."""
    rows = manifest["rows"]
    drawn = ResultTable(
        f"Mixture {manifest['mixture']}", "data set", "weight", "train", "validation", "expected share", "drawn share"
    )
    for name, share in manifest["share"].items():
        drawn.add_row(
            name, f"{share['weight']:g}", f"{rows['train'].get(name, 0):,}", f"{rows['validation'].get(name, 0):,}",
            f"{100 * share['asked']:.2f} %", f"{100 * share['drawn']:.2f} %",
        )  # fmt: skip
    lost = ResultTable("Mean binning error, and share of values outside the bounds", "data set", *_AXES)
    for name, report in manifest["round_trip"].items():
        axes = report["dimensions"]
        lost.add_row(name, *map(_error, axes))
        lost.add_row(Text("  outside", "dim"), *(Text(f"{100 * axis['share_clipped']:.1f} %", "dim") for axis in axes))
    return Group(drawn, *_texts(manifest), *_frames(manifest), lost)


def _texts(manifest: Mapping[str, Any]) -> list[ResultTable]:
    """Image-text sources, where the mixture has any."""
    if "texts" not in manifest:
        return []
    table = ResultTable("Image-text rows", "source", "weight", "rows", "drawn", "share of training rows")
    for name, text in manifest["texts"].items():
        table.add_row(
            name, f"{text['weight']:g}", f"{text['rows']:,}", f"{text['drawn']:,}", f"{100 * text['share']:.2f} %"
        )
    return [table]


def _frames(manifest: Mapping[str, Any]) -> list[Text]:
    """How often a frame is stored, where samples are windows."""
    counts = [split for split in manifest.get("frames", {}).values() if split["distinct"]]
    if not counts:
        return []
    stored, distinct, size, once = (
        sum(c[k] for c in counts) for k in ("stored", "distinct", "bytes", "distinct_bytes")
    )
    if manifest.get("images") == REFERENCE:
        return [Text(f"{stored:,} places of {distinct:,} distinct frames, {once / 1e6:,.1f} MB of the source.\n")]
    line = f"{stored:,} frames stored for {distinct:,} distinct frames: {stored / distinct:.2f} copies each"
    return [Text(f"{line}, {size / 1e6:,.1f} MB of images instead of {once / 1e6:,.1f} MB.\n")]


def _error(axis: Mapping[str, Any]) -> str:
    if axis["constant"]:
        return "constant"
    return f"{axis['mean_error'] * (1000 if axis['unit'] == 'm' else 1):.2g}"


def chosen_tokens(report: list[dict[str, Any]]) -> ResultTable:
    """The first and last of the tokens that a rule chose."""
    why = Column("why", left=True, wrap=True)
    table = ResultTable(f"{len(report)} action tokens", "bin", "token", Column("piece", left=True), "count", why)
    for row in report[:12] + report[-4:]:
        table.add_row(str(row["bin"]), str(row["token_id"]), repr(row["piece"]), str(row["count"]), row["why"])
    return table
