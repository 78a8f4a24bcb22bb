"""The command line: parse, call one function, show the result. Each room is imported inside its command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from oxe_curate import __version__
from oxe_curate.cli import train as training
from oxe_curate.cli.mixture import mixture_app
from oxe_curate.train.packages import check_packages

app = typer.Typer(
    name="oxe-curate",
    help="Open X-Embodiment data, from RLDS shards to a fine-tuned vision-language-action model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(mixture_app)
BEAM = {"allow_extra_args": True, "ignore_unknown_options": False}

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Cards = Annotated[Path | None, typer.Option("--cards", metavar="FOLDER", help="Your own cards, merged over ours.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes. Default: as many as the work is worth.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def main() -> None:
    """Run the command line; map errors to exit codes (0 done, 1 internal fault, 2 the user's input)."""
    own, beam = _split(sys.argv[1:])
    debug = "--debug" in own
    sys.argv[1:] = [a for a in own if a != "--debug"] + beam
    from oxe_curate.errors import CurateError

    try:
        app()
    except CurateError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted. Finished files are kept: run the same command again to go on.", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        first = (str(error).splitlines() or [""])[0]
        _fail(f"internal fault: {type(error).__name__}: {first}\nRun it again with --debug for the traceback.", 1)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our options, and everything from `--` on."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut:]


def _fail(message: str, code: int) -> None:
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(message, err=True)
    sys.exit(code)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"oxe-curate {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    pass


@app.command("filter", context_settings=BEAM)
def filter_(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="Folder of TFDS data sets: local, gs:// or s3://.")],
    out: Annotated[str, typer.Option("--out", metavar="INDEX", help="Folder of the episode index.")],
    dataset: Annotated[list[str] | None, typer.Option("--dataset", help="NAME or NAME:VERSION; repeatable.")] = None,
    split: Annotated[list[str] | None, typer.Option("--split", help="train, train[:95%]; repeatable.")] = None,
    criteria: Annotated[
        Path | None, typer.Option("--criteria", metavar="FILE", help="What episodes must meet.")
    ] = None,
    criterion: Annotated[
        list[str] | None,
        typer.Option("--criterion", metavar="KEY=VALUE", help="One of them, over the file; repeatable."),
    ] = None,
    check_images: Annotated[bool, typer.Option("--check-images", help="Decode every frame (slow).")] = False,
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", metavar="[DATASET=]NAME", help="A card's recipe; repeatable. Default: openvla."),
    ] = None,
    cards: Cards = None,
    frames: Annotated[
        Literal["auto", "exact", "span"],
        typer.Option("--frames", help="Locate every frame, or each camera's list only. auto: by size."),
    ] = "auto",
    verify: Annotated[bool, typer.Option("--verify", help="Check every record's checksum (reads every byte).")] = False,
    skip_corrupt: Annotated[bool, typer.Option("--skip-corrupt", help="Count and list unreadable records.")] = False,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Read RLDS shards, screen their episodes, and write an episode index.

    Episodes are kept that have a third-person camera, single-arm end-effector actions and a text. Images are not
    copied. Options after -- go to Beam: `-- --runner=DataflowRunner --project=...`.
    """
    from oxe_curate.filter.pipeline import FilterOptions, run_filter
    from oxe_curate.filter.screen import read_criteria

    chosen = read_criteria(criteria, [*(criterion or ()), *(["bad_image=true"] if check_images else ())])
    result = run_filter(
        source,
        out,
        FilterOptions(
            datasets=tuple(dataset or ()), splits=tuple(split or ()), criteria=chosen, recipes=tuple(recipe or ()),
            cards=cards, frames=None if frames == "auto" else frames, verify=verify, skip_corrupt=skip_corrupt,
            workers=workers, beam_args=tuple(context.args), progress=not quiet,
        ),
    )  # fmt: skip
    if as_json:
        from dataclasses import asdict

        _print_json({name: asdict(summary) for name, summary in result.summaries.items()})
        return
    from oxe_curate.ui import tables

    screen = tables.console()
    screen.print(tables.filtered(result.summaries))
    for summary in result.summaries.values():
        for line in summary.corrupt[:10]:
            screen.print(f"unreadable, left out: {line}", style="red", markup=False)
    for line in tables.filter_warnings(result.summaries, out):
        screen.print(line, style="yellow", markup=False)
    done = f"{result.shards_done} shards scanned in {result.seconds:.1f} s"
    screen.print(f"{done}, {result.shards_kept} were done before. Index: {out}", markup=False)


@app.command("tokenize", context_settings=BEAM)
def tokenize(
    context: typer.Context,
    mixture: Annotated[Path, typer.Argument(help="Mixture YAML: data sets and weights.")],
    index: Annotated[str, typer.Option("--index", help="Folder that filter wrote.")],
    out: Annotated[str, typer.Option("--out", help="Folder of the mixture's shards.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="DIR_OR_FILE", help="Default: the ids of OpenVLA's Llama 2."),
    ] = None,
    rule: Annotated[
        Literal["last", "counts", "reserved"], typer.Option("--rule", help="Which tokens stand for actions.")
    ] = "last",
    corpus: Annotated[
        list[Path] | None, typer.Option("--corpus", metavar="FILES", help="Texts for --rule counts; repeatable.")
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option("--statistics", metavar="FILE", help="Published bounds to normalise by.")
    ] = None,
    cards: Cards = None,
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=1, help="Images per output shard, in MB.")] = 256,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another finished mixture in --out.")] = False,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Normalise and bin the actions of a mixture, and write its samples to shuffled Parquet shards.

    Options after -- go to Beam, as for filter.
    """
    from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize

    result = run_tokenize(
        mixture,
        index,
        out,
        TokenizeOptions(
            tokenizer=tokenizer, rule=rule, corpus=tuple(corpus or ()), statistics=statistics, cards=cards,
            shard_bytes=shard_mb << 20, overwrite=overwrite, workers=workers, beam_args=tuple(context.args),
            progress=not quiet,
        ),
    )  # fmt: skip
    if as_json:
        _print_json(result.manifest)
        return
    from oxe_curate.ui import tables

    screen = tables.console()
    screen.print(tables.tokenized(result.manifest))
    if rule == "counts":
        screen.print(tables.chosen_tokens(result.tokens.report()))
    done = f"{result.shards_done} shards written in {result.seconds:.1f} s"
    screen.print(f"{done}, {result.shards_kept} were done before. Mixture: {out}", markup=False)


@app.command("datasets")
def datasets(
    text: Annotated[str | None, typer.Argument(help="Only those with this in name, robot or reason.")] = None,
    verdict: Annotated[str | None, typer.Option("--verdict", help="pass, fail, conditional or unknown.")] = None,
    camera: Annotated[str | None, typer.Option("--camera", help="Only those with a camera of this role.")] = None,
    arms: Annotated[str | None, typer.Option("--arms", help="single, bimanual, none, ...")] = None,
    cards: Cards = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """List what is known of each data set: cameras, arms, and whether it fits OpenVLA's criteria."""
    from oxe_curate import registry
    from oxe_curate.ui import tables

    rows = registry.table(cards, verdict=verdict, role=camera, arms=arms, text=text)
    if as_json:
        _print_json(rows)
    elif markdown:
        typer.echo(tables.datasets_markdown(rows))
    else:
        screen = tables.console()
        screen.print(tables.datasets_table(rows, screen.width))


@app.command("report")
def report(
    index: Annotated[str, typer.Argument(help="Folder that filter wrote.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path("report.html"),
    cards: Cards = None,
    quiet: Quiet = False,
) -> None:
    """Show what the filter kept and dropped, and why, as one HTML page without any request to the network."""
    from oxe_curate.report import write_report

    typer.echo(f"Report: {write_report(index, out, not quiet, cards)}")


@app.command("inspect")
def inspect_(
    path: Annotated[str, typer.Argument(help="One data set: its <name>/<version> folder, or a folder above it.")],
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="How many to read, spread over the shards.")] = 32,
    out: Annotated[Path | None, typer.Option("--out", metavar="CARD.yaml", help="Write a draft card.")] = None,
    thumbnails: Annotated[
        Path | None, typer.Option("--thumbnails", metavar="PNG", help="Write a contact sheet of every camera.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Which episodes.")] = 0,
    as_json: Json = False,
) -> None:
    """Look at a data set that no card covers: cameras, ranges, texts, conventions; and draft a card.

    Every answer comes with how sure it is and why. episode_metadata is not read, apart from true or false.
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
        _print_json(report.to_json())
        return
    from oxe_curate.inspection.show import inspected
    from oxe_curate.ui import tables

    screen = tables.console()
    screen.print(inspected(report))
    for written in filter(None, (out, thumbnails)):
        screen.print(f"Written: {written}", markup=False)


@app.command("check")
def check(
    card: Annotated[str, typer.Argument(help="A data set's name or alias, or a card's file (.yaml).")],
    source: Annotated[str, typer.Option("--source", metavar="ROOT", help="Folder of the TFDS data sets.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="Which of the card's recipes.")] = None,
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="How many to read, spread over the shards.")] = 32,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 2 on a contradiction.")] = False,
    cards: Cards = None,
    seed: Annotated[int, typer.Option("--seed", help="Which episodes.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare a card with the data: where they contradict, how sure that is, and why.

    Ends with exit code 0 also when they do, unless --strict asks for 2.
    """
    from oxe_curate.inspection import check_dataset

    result = check_dataset(card, source, recipe=recipe, cards_dir=cards, episodes=episodes, seed=seed)
    if as_json:
        _print_json(result.to_json())
    else:
        from oxe_curate.inspection.show import checked
        from oxe_curate.ui import tables

        tables.console().print(checked(result))
    if strict and result.contradictions:
        raise typer.Exit(2)


@app.command("edit")
def edit(
    mixture: Annotated[Path, typer.Argument(help="Mixture YAML; made by the first save if it is not there.")],
    index: Annotated[
        str | None, typer.Option("--index", help="Folder that filter wrote: sizes, frames, samples.")
    ] = None,
    cards: Cards = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Default: 8441, or a free one.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="HOST[:PORT]", help="Another name of the page; repeatable."),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the address in a browser.")] = False,
) -> None:
    """Edit a mixture in the browser: weights, shares, frames, checks. Serves on 127.0.0.1 until Ctrl+C."""
    try:
        from oxe_curate.editor.server import serve_editor
    except ModuleNotFoundError as error:
        if error.name not in ("anyio", "starlette", "uvicorn"):
            raise
        from oxe_curate.errors import ConfigError

        raise ConfigError('the editor needs two packages: pip install "oxe-curate[edit]"') from None
    serve_editor(mixture, index, cards=cards, port=port, allow_hosts=allow_host or (), open_browser=open_browser)


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", help="Of the scenes.")] = 0,
    train: Annotated[
        bool, typer.Option("--train", help="Then train a tiny OpenVLA on them and evaluate it: three minutes.")
    ] = False,
) -> None:
    """Make small synthetic RLDS data sets, filter and tokenize them, and show what came out. Under a minute."""
    from oxe_curate.demo.run import run_demo

    if train:
        check_packages()
    run_demo(out, seed)
    if train:
        from oxe_curate.demo.train import run_training_demo

        run_training_demo(out)


training.register(app)
