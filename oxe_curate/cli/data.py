"""`oxe-curate datasets`, `report`, `inspect`, `check`, `slices` and `merge-index`: data, cards and indexes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from oxe_curate.cli.options import Cards, Json, Quiet, print_json, print_result, reads_stores


def datasets(
    text: Annotated[str | None, typer.Argument(help="Only data sets with this in their name, robot or reason.")] = None,
    verdict: Annotated[
        str | None, typer.Option("--verdict", help="Only this verdict: pass, fail, conditional or unknown.")
    ] = None,
    camera: Annotated[str | None, typer.Option("--camera", help="Only data sets with a camera of this role.")] = None,
    arms: Annotated[str | None, typer.Option("--arms", help="Only these arms: single, bimanual, none, ...")] = None,
    cards: Cards = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """List the known data sets: cameras, arms, and whether they meet OpenVLA's criteria."""
    from oxe_curate import registry

    rows = registry.table(cards, verdict=verdict, role=camera, arms=arms, text=text)
    if text and not rows:
        _no_data_set(text, registry.table(cards))
    if as_json:
        print_json(rows)
        return
    from oxe_curate.registry import show

    if markdown:
        typer.echo(show.datasets_markdown(rows))
    else:
        print_result(show.datasets_table(rows))


def _no_data_set(text: str, known: list[dict[str, Any]]) -> None:
    """Raise ConfigError with the closest name, or with the part of a name."""
    from oxe_curate.errors import ConfigError, closest

    names = {name for row in known for name in (row["name"], *row["aliases"])}
    suggestion = closest(text, names | {part for name in names for part in name.split("_") if len(part) > 3})
    raise ConfigError(
        f"no data set matches {text!r}. {suggestion or 'Try without the filters, or a part of the name.'}"
    )


@reads_stores
def report(
    index: Annotated[str, typer.Argument(help="Folder that filter wrote.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="HTML file to write.")] = Path("report.html"),
    cards: Cards = None,
    quiet: Quiet = False,
) -> None:
    """Write one self-contained HTML page of the kept and dropped episodes, and the reasons."""
    from oxe_curate.report import write_report

    typer.echo(f"Report: {write_report(index, out, not quiet, cards)}")


@reads_stores
def inspect_(
    path: Annotated[str, typer.Argument(help="A data set: its <name>/<version> folder, or a folder above it.")],
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="Episodes to read, spread over the shards.")] = 32,
    out: Annotated[Path | None, typer.Option("--out", metavar="CARD.yaml", help="Write a draft card.")] = None,
    thumbnails: Annotated[
        Path | None, typer.Option("--thumbnails", metavar="PNG", help="Write a contact sheet of every camera.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the choice of episodes.")] = 0,
    as_json: Json = False,
) -> None:
    """Describe a data set that has no card (cameras, ranges, instructions, conventions), and draft a card.

    Every answer has a confidence and a reason. Text in episode_metadata is not read.
    """
    from oxe_curate.inspection import inspect_dataset, write_draft

    report = inspect_dataset(path, episodes=episodes, seed=seed)
    if out is not None:
        write_draft(report, out)
    if thumbnails is not None:
        from oxe_curate.inspection.sheet import contact_sheet, png
        from oxe_curate.storage import Folder

        Folder.of(thumbnails.parent).publish_bytes(thumbnails.name, png(contact_sheet(report.sample)))
    if as_json:
        print_json(report.to_json())
        return
    from oxe_curate.inspection.show import inspected

    print_result(inspected(report))
    for written in filter(None, (out, thumbnails)):
        typer.echo(f"Written: {written}")


@reads_stores
def check(
    card: Annotated[str, typer.Argument(help="A data set's name or alias, or a card file (.yaml).")],
    source: Annotated[str, typer.Option("--source", metavar="ROOT", help="Folder of TFDS data sets.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="Recipe of the card (default: openvla).")] = None,
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="Episodes to read, spread over the shards.")] = 32,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 2 on a contradiction or an error.")] = False,
    cards: Cards = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the choice of episodes.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare a card with the data: contradictions, with a confidence and a reason for each.

    Also judges the actions that the card's recipe makes, as filter does. The exit code is 0 even if there are
    contradictions, unless --strict is set.
    """
    from oxe_curate.inspection import check_dataset

    result = check_dataset(card, source, recipe=recipe, cards_dir=cards, episodes=episodes, seed=seed)
    if as_json:
        print_json(result.to_json())
    else:
        from oxe_curate.inspection.show import checked

        print_result(checked(result))
    if strict and result.fails:
        raise typer.Exit(2)


def slices(
    source: Annotated[str, typer.Argument(help="Folder of TFDS data sets: local, gs:// or s3://.")],
    parts: Annotated[int, typer.Option("--parts", min=1, help="Number of parts.")],
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="NAME or NAME:VERSION; repeatable (default: all).")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="TFDS split, such as train[:95%]; repeatable (default: all).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Divide data sets at shard boundaries, for jobs that each filter one part: one line of filter's options per part.

    Start one job per line, each with its own --out, then merge the indexes with merge-index.
    """
    from oxe_curate.filter.slices import plan_slices

    found = plan_slices(source, parts, dataset or (), split or ())
    if as_json:
        from dataclasses import asdict

        print_json([asdict(part) for part in found])
        return
    for part in found:
        typer.echo(part.options)


def merge_index(
    parts: Annotated[list[str], typer.Argument(metavar="PART...", help="Folders that filter wrote.")],
    out: Annotated[str, typer.Option("--out", metavar="INDEX", help="Folder for the merged index.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge indexes of parts of the same data into one, and find copies of episodes across them.

    The result is the index that one filter run over all parts writes. A shard may be in one part only; see slices.
    """
    from oxe_curate.filter.merge import merge_indexes

    result = merge_indexes(parts, out, not quiet)
    if as_json:
        from dataclasses import asdict

        print_json(asdict(result))
        return
    from oxe_curate.filter import show
    from oxe_curate.ui.tables import counted

    print_result(show.filtered(result.summaries))
    for line in show.filter_warnings(result.summaries, out):
        typer.secho(line, fg="yellow")
    for name, splits in result.missing.items():
        typer.secho(f"{name}: no part has {', '.join(splits)}", fg="yellow")
    typer.echo(f"{counted(result.files, 'index file')} of {counted(len(parts), 'part')}. Index: {out}")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("datasets", short_help="List the known data sets.")(datasets)
    app.command("report", short_help="Show what the filter kept and dropped, as a page.")(report)
    app.command("inspect", short_help="Describe a new data set, and draft a card.")(inspect_)
    app.command("check", short_help="Compare a card with the data.")(check)
    app.command("slices", short_help="Divide data sets into parts for an array of filter jobs.")(slices)
    app.command("merge-index", short_help="Merge the indexes of such parts into one.")(merge_index)
