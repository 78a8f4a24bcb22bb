"""The command line: parse, call one function, show the result. Each room is imported inside its command."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from oxe_curate import __version__
from oxe_curate.cli import data
from oxe_curate.cli import train as training
from oxe_curate.cli.mixture import mixture_app
from oxe_curate.cli.options import (
    Cards,
    CriteriaFile,
    Criterion,
    Json,
    Preset,
    Quiet,
    Workers,
    print_json,
    print_result,
    reads_stores,
)  # fmt: skip
from oxe_curate.cli.screening import filter_dry_run, print_findings, screen
from oxe_curate.cli.tokenizing import materialize, tokenize
from oxe_curate.process import Interrupted, interrupt_on_signals
from oxe_curate.train.packages import check_packages


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # typer would end without a word
            _interrupted(error)


app = typer.Typer(
    name="oxe-curate",
    cls=_Commands,
    help="Turn Open X-Embodiment data (RLDS) into fine-tuned vision-language-action models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(mixture_app)
_BEAM = {"allow_extra_args": True, "ignore_unknown_options": False}


def main() -> None:
    """Run the command line; map errors to exit codes (0 done, 1 internal error, 2 user error, 128 + a signal)."""
    interrupt_on_signals()
    own, beam = _split(sys.argv[1:])
    debug = "--debug" in own
    sys.argv[1:] = [a for a in own if a != "--debug"] + beam
    from oxe_curate.errors import CurateError, bounded

    if odd := next((a for a in sys.argv[1:] if not a.isascii() and _is_broken(a)), None):
        _fail(f"{odd!r}: expected UTF-8 in every argument; rename the file, or check the terminal's encoding", 2)
    try:
        app()
    except CurateError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        _interrupted(error)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except MemoryError:
        if debug:
            raise
        _fail("out of memory. Finished files are kept: run the same command again with more memory.", 1)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.filename is not None:
            _fail(bounded(f"{error.filename}: {error.strerror or error}. Check the path and its permissions."), 2)
        first = (str(error).splitlines() or [""])[0]
        _fail(f"internal error: {type(error).__name__}: {first}\nRun again with --debug for the traceback.", 1)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our options, and everything from `--` on."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut:]


def _is_broken(argument: str) -> bool:
    """Whether an argument has bytes that are not UTF-8, which Python passes on as surrogates."""
    return any("\ud800" <= letter <= "\udfff" for letter in argument)


def _interrupted(error: KeyboardInterrupt) -> NoReturn:
    number = error.number if isinstance(error, Interrupted) else signal.SIGINT
    _fail("interrupted; finished files are kept: run the same command again", 128 + number)


def _fail(message: str, code: int) -> NoReturn:
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(message, err=True)
    sys.exit(code)


def _version(given: bool) -> None:
    if given:
        typer.echo(f"oxe-curate {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; accepted anywhere.")] = False,
) -> None:
    pass


@app.command("filter", context_settings=_BEAM, short_help="Screen RLDS episodes, and write an episode index.")
@reads_stores
def filter_(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="Folder of TFDS data sets: local, gs:// or s3://.")],
    out: Annotated[str, typer.Option("--out", metavar="INDEX", help="Folder for the episode index.")],
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="NAME or NAME:VERSION; repeatable (default: all).")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="TFDS split, such as train[:95%]; repeatable (default: all).")
    ] = None,
    criteria: CriteriaFile = None,
    criterion: Criterion = None,
    preset: Preset = None,
    check_images: Annotated[bool, typer.Option("--check-images", help="Decode every frame (slow).")] = False,
    look: Annotated[
        int,
        typer.Option(
            "--look",
            min=0,
            help="Decode this many frames of each episode and camera, for criteria that see images.",
        ),
    ] = 0,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe", metavar="[DATASET=]NAME", help="Action recipe of the card; repeatable (default: openvla)."
        ),
    ] = None,
    cards: Cards = None,
    frames: Annotated[
        Literal["auto", "exact", "span"],
        typer.Option("--frames", help="Index every frame, or only the range of each camera's frames (auto: by size)."),
    ] = "auto",
    verify: Annotated[
        bool, typer.Option("--verify", help="Verify the checksum of every record (reads every byte).")
    ] = False,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Skip unreadable records, and list them.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only show what would be read, or what the criteria make of the index at --out."
        ),
    ] = False,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Read RLDS shards, screen their episodes, and write an episode index.

    Keeps episodes that have a third-person camera, single-arm end-effector actions and an instruction. Images are not
    copied. Options after -- are passed to Beam: `-- --runner=DataflowRunner --project=...`.
    """
    from oxe_curate.filter.criteria import read_criteria
    from oxe_curate.filter.pipeline import FilterOptions, run_filter

    settings = [*(criterion or ()), *(["bad_image=true"] if check_images else ())]
    options = FilterOptions(
        datasets=tuple(dataset or ()), splits=tuple(split or ()), criteria=read_criteria(criteria, settings, preset),
        recipes=tuple(recipe or ()), cards=cards, frames=None if frames == "auto" else frames, look=look, verify=verify,
        skip_corrupt=skip_corrupt, workers=workers, beam_args=tuple(context.args), progress=not quiet,
    )  # fmt: skip
    if dry_run:
        filter_dry_run(source, out, options, as_json)
        return
    result = run_filter(source, out, options)
    if as_json:
        from dataclasses import asdict

        from oxe_curate.index.store import Index

        found = {name: asdict(entry) for name, entry in Index.open(out).datasets.items()}
        print_json(
            {
                name: {**asdict(summary), **{key: found[name][key] for key in ("judged", "findings")}}
                for name, summary in result.summaries.items()
            }
        )
        return
    from oxe_curate.filter import show
    from oxe_curate.ui.tables import counted

    print_result(show.filtered(result.summaries))
    print_findings(result.judged)
    for summary in result.summaries.values():
        for line in summary.corrupt[:10]:
            typer.secho(f"unreadable, skipped: {line}", fg="red")
    for line in show.filter_warnings(result.summaries, out):
        typer.secho(line, fg="yellow")
    if result.ignored:
        typer.secho(f"ignored, since the name is not that of a version: {', '.join(result.ignored)}", fg="yellow")
    done = f"{counted(result.shards_done, 'shard')} scanned in {result.seconds:.1f} s"
    typer.echo(f"{done}, {result.shards_kept:,} already up to date. Index: {out}")


app.command("screen", short_help="Apply criteria to an existing index.")(screen)


app.command("tokenize", context_settings=_BEAM, short_help="Write a mixture to shuffled Parquet shards.")(tokenize)
app.command("materialize", context_settings=_BEAM, short_help="Copy the frames of a mixture by reference.")(materialize)


@app.command("edit", short_help="Edit a mixture in the browser.")
@reads_stores
def edit(
    mixture: Annotated[
        str, typer.Argument(help="Mixture YAML, created on the first save; or a published mixture, opened as a copy.")
    ],
    index: Annotated[
        str | None, typer.Option("--index", help="Folder that filter wrote; adds sizes, frames and samples.")
    ] = None,
    cards: Cards = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port (default: 8441, or a free one).")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="HOST[:PORT]", help="Another host name of the page; repeatable."),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Edit a mixture in the browser: weights, shares, frames, checks. Serves on 127.0.0.1 until Ctrl+C."""
    check_packages("anyio", "starlette", "uvicorn", why="edit needs")
    from oxe_curate.editor.server import serve_editor

    serve_editor(mixture, index, cards=cards, port=port, allow_hosts=allow_host or (), open_browser=open_browser)


@app.command("demo", short_help="Filter and tokenize small synthetic data sets.")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the scenes.")] = 0,
    train: Annotated[
        bool, typer.Option("--train", help="Also train and evaluate a tiny OpenVLA (about three minutes).")
    ] = False,
) -> None:
    """Write small synthetic RLDS data sets, filter and tokenize them, and show the result (under a minute)."""
    from oxe_curate.demo.run import run_demo

    if train:
        check_packages()
    run_demo(out, seed)
    if train:
        from oxe_curate.demo.train import run_training_demo

        run_training_demo(out)


data.register(app)
training.register(app)
