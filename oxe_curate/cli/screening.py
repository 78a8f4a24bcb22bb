"""The command `screen`, `filter --dry-run`, and what both print of the criteria that compare episodes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from oxe_curate.cli.options import CriteriaFile, Criterion, Json, Preset, Quiet, print_json, print_result, reads_stores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oxe_curate.filter.plan import FilterOptions
    from oxe_curate.filter.rescreen import ScreenResult
    from oxe_curate.index.index_json import Judged


@reads_stores
def screen(
    index: Annotated[str, typer.Argument(help="Folder that filter wrote.")],
    criteria: CriteriaFile = None,
    criterion: Criterion = None,
    preset: Preset = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the result; change nothing.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Apply criteria to an existing index, without reading the source.

    The result is the index that filter writes with these criteria. Criteria that need the images again (black_level,
    bad_image, drop_idle_frames) are refused if they differ from those of the index.
    """
    from oxe_curate.filter.criteria import read_criteria
    from oxe_curate.filter.rescreen import screen_index

    result = screen_index(index, read_criteria(criteria, criterion or (), preset), dry_run, not quiet)
    _show(result, index, as_json)
    if not as_json:
        from oxe_curate.ui.tables import counted

        done = "would change" if dry_run else "changed"
        typer.echo(f"{counted(result.changed, 'index file')} {done}. Index: {index}")


def filter_dry_run(source: str, out: str, options: FilterOptions, as_json: bool) -> None:
    """Show what `filter` would do: with an index at `out`, what the criteria make of it; else, what would be read."""
    from oxe_curate.filter import show
    from oxe_curate.filter.plan import plan_filter
    from oxe_curate.filter.rescreen import screen_index
    from oxe_curate.index.index_json import INDEX_JSON
    from oxe_curate.storage import Folder

    if Folder.of(out).exists(INDEX_JSON):
        _show(screen_index(out, options.criteria, dry_run=True, progress=options.progress), out, as_json)
        if not as_json:
            typer.echo(f"Dry run: {out} was not changed, and {source} was not read.")
        return
    tasks = plan_filter(source, out, options)
    if as_json:
        print_json(
            [
                {"dataset": t.dataset.name, "shard": t.shard.path, "bytes": t.size, "records": t.shard.take}
                for t in tasks
            ]
        )
        return
    print_result(show.planned(tasks))
    typer.echo(f"Dry run: only the list of shards was read, and nothing was written. There is no index at {out}.")


def _show(result: ScreenResult, index: str, as_json: bool) -> None:
    from oxe_curate.filter import show

    if as_json:
        judged = {name: {key: asdict(one) for key, one in found.items()} for name, found in result.judged.items()}
        counts = {name: asdict(summary) for name, summary in result.after.items()}
        print_json({"datasets": counts, "judged": judged, "changed": result.changed})
        return
    print_result(show.filtered(dict(result.after)))
    print_findings(result.judged)
    for name, before in result.before.items():
        after = result.after[name]
        if before.kept != after.kept:
            typer.echo(f"{name}: {before.kept:,} episodes were kept, now {after.kept:,}.")
    for line in show.count_warnings(dict(result.after)):
        typer.secho(line, fg="yellow")


def print_findings(judged: Mapping[str, Mapping[str, Judged]]) -> None:
    """Print the table of the criteria that compare episodes, if there is something in it."""
    from oxe_curate.filter import show

    table = show.compared(judged)
    if table is not None:
        print_result(table)
