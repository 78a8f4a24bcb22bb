"""Write marks into an index, as `screen` does with what its measures find."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from oxe_curate.index.files import write_files
from oxe_curate.index.index_json import IndexJson, Judged, Summary
from oxe_curate.index.store import Index, describe_file, write_table
from oxe_curate.index.table import with_decisions


def mark(criterion: str, value: float, limit: float = 1.0, step: int = -1, detail: str = "") -> dict[str, Any]:
    return {"criterion": criterion, "value": value, "limit": limit, "step": step, "detail": detail}


def write_marks(
    index: Index,
    marks: Mapping[str, Sequence[dict[str, Any]]],
    reasons: Mapping[str, str] | None = None,
    copies: Mapping[str, str] | None = None,
    unit: str = "",
) -> Index:
    """Mark, drop and copy episodes by id; return the index, opened again."""
    files = dict(index.contents.entries)
    summaries = {name: Summary() for name in index.datasets}
    judged: dict[str, dict[str, Judged]] = {name: {} for name in index.datasets}
    for path in sorted(files):
        table = index.table(path)
        ids = table["episode_id"].to_pylist()
        reason = [(reasons or {}).get(id, old) for id, old in zip(ids, table["reason"].to_pylist(), strict=True)]
        copy = [(copies or {}).get(id, old) for id, old in zip(ids, table["duplicate_of"].to_pylist(), strict=True)]
        mine = [list(marks.get(id, ())) for id in ids]
        table = with_decisions(table, reason, mine, copy).combine_chunks()
        summary = Summary.count(zip(table["num_steps"].to_pylist(), reason, strict=True))
        summary.copies = sum(c is not None and r is None for c, r in zip(copy, reason, strict=True))
        write_table(index.folder, path, table, summary, files[path].fingerprint, files[path].shard)
        files[path] = describe_file(index.folder, path)
        dataset = path.split("/")[0]
        summaries[dataset].add(summary)
        for id, why, found in zip(ids, reason, mine, strict=True):
            for one in found:
                before = judged[dataset].get(one["criterion"])
                counts = Counter(marked=why is None, dropped=why == one["criterion"])
                best = before is None or one["value"] > (before.value or 0)
                judged[dataset][one["criterion"]] = Judged(
                    limit=one["limit"], unit=unit, measured=index.datasets[dataset].summary.seen,
                    marked=counts["marked"] + (before.marked if before else 0),
                    dropped=counts["dropped"] + (before.dropped if before else 0),
                    worst=id if best else before.worst, value=one["value"] if best else before.value,
                )  # fmt: skip
    data = IndexJson.read(index.folder)
    datasets = {
        name: replace(entry, summary=summaries[name], judged=judged[name]) for name, entry in data.datasets.items()
    }
    replace(data, datasets=datasets, files_sha256=write_files(index.folder, files)).finish(index.folder)
    return Index.open(index.folder)
