"""`oxe-curate mixture ...`: parse, call one function, show the result. Each room is imported inside its command."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from oxe_curate.cli.options import Cards, Json, print_json, print_result, reads_stores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oxe_curate.index.store import Index
    from oxe_curate.mixture.members import Member
    from oxe_curate.mixture.spec import Mixture

mixture_app = typer.Typer(
    name="mixture",
    help="Show, check, compare, convert and propose mixtures (YAML files, or published ones by name).",
    short_help="Show, check, compare, convert and propose mixtures.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

FileOrName = Annotated[str, typer.Argument(metavar="MIXTURE", help="Mixture YAML, or the name of a published mixture.")]
IndexFolder = Annotated[
    str | None,
    typer.Option("--index", help="Folder that filter wrote, for the sizes on disk (default: published sizes)."),
]
Samples = Annotated[int | None, typer.Option("--samples", min=1, help="Number of training samples, to compute epochs.")]


@mixture_app.command("list")
def list_(as_json: Json = False) -> None:
    """List the published mixtures and their sources."""
    from oxe_curate.mixture.published import published_mixtures

    known = list(published_mixtures().values())
    if as_json:
        print_json([{**asdict(entry), "path": str(entry.path)} for entry in known])
        return
    from oxe_curate.mixture import show

    print_result(show.published_table(known))


@mixture_app.command("show")
@reads_stores
def show_(
    mixture: FileOrName,
    index: IndexFolder = None,
    samples: Samples = None,
    cards: Cards = None,
    as_json: Json = False,
) -> None:
    """Show share, steps, episodes, hours and epochs of each data set."""
    from oxe_curate.mixture.published import resolve_mixture
    from oxe_curate.mixture.shares import breakdown
    from oxe_curate.mixture.text_sizes import text_sizes

    read, members = _read(mixture, _open(index), cards)
    result = breakdown(read, members, samples)
    texts = text_sizes(read, resolve_mixture(mixture).parent)
    if as_json:
        print_json({**asdict(result), "hours": result.hours, "texts": [asdict(text) for text in texts]})
        return
    from oxe_curate.mixture import show

    print_result(show.mixture_table(result, texts))


@mixture_app.command("check")
@reads_stores
def check_(
    mixture: FileOrName,
    index: IndexFolder = None,
    samples: Samples = None,
    cards: Cards = None,
    as_json: Json = False,
) -> None:
    """Check a mixture; the exit code is 2 if there is an error.

    With --index, the errors are what tokenize refuses: unknown, absent, duplicate or empty data sets, missing cameras,
    splits, bounds and sources, episodes counted twice, actions that are wrong for training. Warnings: actions that may
    be, nothing held out, epochs below 1 or above 10 (with --samples), no language, control rates more than 5 times
    apart, undocumented gripper polarity or licence. The mixture's key accept silences a finding by name, with a reason;
    docs/decisions/findings.md lists them.
    """
    from oxe_curate.mixture import check
    from oxe_curate.mixture.published import resolve_mixture

    path = resolve_mixture(mixture)
    found = check.check_file(path, _open(index), samples, cards)
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        from oxe_curate.mixture import show

        print_result(show.problems_text(found, path.name))
    if check.has_errors(found):
        raise typer.Exit(2)


@mixture_app.command("diff")
@reads_stores
def diff_(
    before: FileOrName,
    after: FileOrName,
    index: IndexFolder = None,
    cards: Cards = None,
    unchanged: Annotated[bool, typer.Option("--all", help="Include unchanged data sets.")] = False,
    as_json: Json = False,
) -> None:
    """Compare two mixtures: weight and share per data set."""
    from oxe_curate.mixture.diff import diff

    opened = _open(index)
    result = diff(_read(before, opened, cards), _read(after, opened, cards))
    if as_json:
        print_json(asdict(result))
        return
    from oxe_curate.mixture import show

    print_result(show.difference_table(result, unchanged))


@mixture_app.command("convert")
@reads_stores
def convert_(
    source: Annotated[str, typer.Argument(help="Mixture; with --from shares or epochs: a file of `name: number`.")],
    to: Annotated[Literal["weights", "shares", "epochs"], typer.Option("--to", help="Unit to convert to.")],
    from_: Annotated[
        Literal["weights", "shares", "epochs"], typer.Option("--from", help="Unit of the numbers in the source.")
    ] = "weights",
    index: IndexFolder = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="To epochs: training samples. To weights: samples of one pass."),
    ] = None,
    cards: Cards = None,
    as_json: Json = False,
) -> None:
    """Convert between weights, shares and epochs, exactly.

    --to weights prints a mixture file; --to shares or epochs prints `name: number` lines, which --from reads.
    """
    from oxe_curate.mixture import convert
    from oxe_curate.mixture.members import members
    from oxe_curate.mixture.show import quantities_text

    opened = _open(index)
    if from_ == "weights":
        mixture, found = _read(source, opened, cards)
    else:
        mixture, selected = convert.read_quantities(Path(source), from_)
        found = members(mixture, opened, cards)
        one_pass = samples if to == "weights" else None
        mixture = convert.with_quantities(mixture, found, selected, from_, one_pass)
        found = members(mixture, opened, cards)
    values = convert.quantities(mixture, found, to, samples)
    if as_json:
        print_json(values)
    else:
        typer.echo(convert.to_text(mixture) if to == "weights" else quantities_text(values), nl=False)


@mixture_app.command("propose")
@reads_stores
def propose_(
    index: Annotated[str, typer.Option("--index", help="Folder that filter wrote; its source must be readable.")],
    mixture: Annotated[
        str | None, typer.Argument(help="Mixture whose data sets are weighted (default: all data sets of the index).")
    ] = None,
    method: Annotated[
        Literal["diversity", "proxy"],
        typer.Option("--method", help="By variety of scenes, tasks and actions, or by the loss of a small model."),
    ] = "diversity",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the proposal to a mixture file.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the proxy model.")] = 0,
    sample: Annotated[int, typer.Option("--episodes", min=1, help="Episodes to read of each data set.")] = 256,
    cards: Cards = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.")] = False,
    as_json: Json = False,
) -> None:
    """Propose weights, with a reason for each.

    docs/decisions/weights.md explains the methods.
    """
    from oxe_curate.errors import ConfigError
    from oxe_curate.mixture.propose import propose
    from oxe_curate.mixture.published import resolve_mixture
    from oxe_curate.mixture.spec import read_mixture

    if out and out.exists():
        raise ConfigError(f"--out {out}: already exists; give another name or delete it")
    opened = _open(index)
    assert opened is not None
    result = propose(
        opened,
        read_mixture(resolve_mixture(mixture)) if mixture else None,
        method,
        seed=seed,
        sample=sample,
        cards=cards,
        progress=lambda name: None if quiet else typer.echo(f"reading {name}", err=True),
    )
    if out:
        from oxe_curate.storage import Folder

        Folder.of(out.absolute().parent).publish_bytes(out.name, result.to_text().encode())
    if as_json:
        print_json(result.to_json())
        return
    from oxe_curate.mixture import show

    print_result(show.proposal_table(result))
    if out:
        typer.echo(f"Mixture: {out}")


def _read(file_or_name: str, index: Index | None, cards: Path | None) -> tuple[Mixture, Sequence[Member]]:
    from oxe_curate.mixture.members import members
    from oxe_curate.mixture.published import resolve_mixture
    from oxe_curate.mixture.spec import read_mixture

    mixture = read_mixture(resolve_mixture(file_or_name))
    return mixture, members(mixture, index, cards)


def _open(index: str | None) -> Index | None:
    from oxe_curate.index.store import Index

    return Index.open(index) if index else None
