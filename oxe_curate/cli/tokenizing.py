"""The commands `tokenize` and `materialize`, which write mixtures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from oxe_curate.cli.options import Cards, Json, Quiet, Workers, print_json, print_result, reads_stores

if TYPE_CHECKING:
    from oxe_curate.tokenize.pipeline import TokenizeResult

CheckRecords = Annotated[
    bool | None,
    typer.Option(
        "--check-records/--no-check-records",
        help="Verify the checksum of every record that is drawn from (default: if local, or fetched anyway).",
    ),
]
Verify = Annotated[
    bool, typer.Option("--verify", help="Read finished shards in an object store again, to verify every byte.")
]


@reads_stores
def tokenize(
    context: typer.Context,
    mixture: Annotated[str, typer.Argument(help="Mixture YAML, or the name of a published mixture.")],
    index: Annotated[str, typer.Option("--index", help="Folder that filter wrote.")],
    out: Annotated[str, typer.Option("--out", help="Folder for the mixture's shards.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="DIR_OR_FILE", help="Tokenizer (default: token ids of OpenVLA's Llama 2)."),
    ] = None,
    rule: Annotated[
        Literal["last", "counts", "reserved"], typer.Option("--rule", help="Which tokens represent actions.")
    ] = "last",
    corpus: Annotated[
        list[Path] | None, typer.Option("--corpus", metavar="FILES", help="Text files for --rule counts; repeatable.")
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            "--statistics", metavar="FILE", help="dataset_statistics.json to normalise with (default: computed)."
        ),
    ] = None,
    cards: Cards = None,
    source: Annotated[
        str | None,
        typer.Option("--source", metavar="ROOT", help="Where the data sets are now (default: where filter read them)."),
    ] = None,
    check_records: CheckRecords = None,
    verify: Verify = False,
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=1, help="Images per output shard, in MB.")] = 256,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another mixture or another tokenizer's table in --out.")
    ] = False,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Normalise and bin the actions of a mixture, and write its samples to shuffled Parquet shards.

    Options after -- are passed to Beam, as for filter.
    """
    from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize

    result = run_tokenize(
        mixture,
        index,
        out,
        TokenizeOptions(
            tokenizer=tokenizer, rule=rule, corpus=tuple(corpus or ()), statistics=statistics, cards=cards,
            source=source, check_records=check_records, verify=verify, shard_bytes=shard_mb << 20, overwrite=overwrite,
            workers=workers, beam_args=tuple(context.args), progress=not quiet,
        ),
    )  # fmt: skip
    _show(result, out, as_json, rule == "counts")


@reads_stores
def materialize(
    context: typer.Context,
    mixture: Annotated[str, typer.Argument(help="Folder that tokenize wrote with image: {copy: false}.")],
    out: Annotated[str, typer.Option("--out", help="Folder for the mixture with copies.")],
    source: Annotated[
        str | None,
        typer.Option("--source", metavar="ROOT", help="Where the data sets are now (default: as in the mixture)."),
    ] = None,
    check_records: CheckRecords = None,
    verify: Verify = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another mixture in --out.")] = False,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Copy the frames that a mixture by reference names into shards: the mixture that tokenize writes with copies.

    The result is equal byte for byte. No index is needed. Options after -- are passed to Beam, as for filter.
    """
    from oxe_curate.tokenize.materialize import MaterializeOptions, run_materialize

    result = run_materialize(
        mixture,
        out,
        MaterializeOptions(
            source=source, check_records=check_records, verify=verify, overwrite=overwrite, workers=workers,
            beam_args=tuple(context.args), progress=not quiet,
        ),
    )  # fmt: skip
    _show(result, out, as_json)


def _show(result: TokenizeResult, out: str, as_json: bool, tokens: bool = False) -> None:
    for name in result.damaged:
        typer.secho(f"damaged, written again: {out}/{name}", fg="yellow", err=True)
    for line in result.warnings:
        typer.secho(f"warning: {line}", fg="yellow", err=True)
    if as_json:
        print_json(result.manifest)
        return
    from oxe_curate.tokenize import show
    from oxe_curate.ui.tables import counted

    print_result(show.tokenized(result.manifest))
    if tokens:
        print_result(show.chosen_tokens(result.tokens.report()))
    done = f"{counted(result.shards_done, 'shard')} written in {result.seconds:.1f} s"
    typer.echo(f"{done}, {result.shards_kept:,} already up to date. Mixture: {out}")
