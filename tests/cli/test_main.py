"""The command line as a user types it: help, exit codes, what is printed where."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from oxe_curate.cli.main import app
from tests import ROOT, bridge

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def oxe(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", ROOT / "cli.py", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "COLUMNS": "100", **(env or {})},
    )  # fmt: skip


def test_odd_paths_end_in_one_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    bridge.write(tmp_path / "in")
    filtering = ("filter", tmp_path / "in", "-q", "--out")
    for arguments, words in (
        (("mixture", "check", tmp_path / "pipe.yaml"), "expected a regular file, got a pipe"),
        (("mixture", "show", tmp_path / "zero.yaml"), "expected a regular file"),
        (("mixture", "show", tmp_path / "loop.yaml"), "symbolic links"),
        (("mixture", "show", tmp_path / ("x" * 300 + ".yaml")), "file not found"),
        (("mixture", "show", "x" * 300), "no such file or published mixture"),
        (("edit", tmp_path / "pipe.yaml"), "regular file"),
        ((*filtering, tmp_path / ("x" * 300)), "too long"),
        ((*filtering, tmp_path / "loop.yaml"), "cannot write"),
        ((*filtering, tmp_path / "\udcff"), "expected UTF-8"),
        ((*filtering, tmp_path / "out", "--criteria", tmp_path / "pipe.yaml"), "got a pipe"),
        ((*filtering, tmp_path / "out", "--criterion", "too_short=" + "9" * 5000), "at most 300 digits"),
    ):
        result = oxe(*arguments)
        assert result.returncode == 2, result.stderr
        assert words in result.stderr
        assert len(result.stderr.splitlines()) < 5


def flat(commands: dict, prefix: str = "") -> dict:
    found = {}
    for name, command in commands.items():
        found |= (
            flat(command.commands, f"{prefix}{name} ") if hasattr(command, "commands") else {prefix + name: command}
        )
    return found


@pytest.mark.parametrize("name", flat(COMMANDS))
def test_every_command_and_option_has_help(name: str) -> None:
    command = flat(COMMANDS)[name]
    assert command.help
    for parameter in command.params:
        assert parameter.help, f"{name} {parameter.name}"


def test_help_answers_without_loading_the_rooms() -> None:
    code = "import sys, oxe_curate.cli.main; print(*sorted(m for m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "pyarrow", "apache_beam", "tensorflow", "polars", "torch", "pydantic"} & set(loaded)


def test_nothing_on_the_way_imports_tensorflow(tmp_path: Path) -> None:
    bridge.write(tmp_path / "in")
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] != "tensorflow", "something imports TensorFlow"
sys.meta_path.insert(0, Refuse())
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from tests import ROOT
run_filter({str(tmp_path / "in")!r}, {str(tmp_path / "out")!r}, FilterOptions(progress=False, workers=1))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    bridge.write(root / "in")
    (root / "m.yaml").write_text("name: m\ndatasets: [{name: bridge_orig, weight: 1}]\n")
    done = oxe("filter", root / "in", "--out", root / "index")
    assert done.returncode == 0, done.stderr
    assert "kept" in done.stdout
    assert done.stderr == ""  # no bar where nobody would see it
    done = oxe("tokenize", root / "m.yaml", "--index", root / "index", "--out", root / "out")
    assert done.returncode == 0, done.stderr
    assert "bridge_orig" in done.stdout
    return root


def test_json_is_json(made: Path) -> None:
    summary = json.loads(oxe("filter", made / "in", "--out", made / "index", "--json").stdout)
    assert summary["bridge_dataset"]["kept"] == 10
    manifest = json.loads(
        oxe("tokenize", made / "m.yaml", "--index", made / "index", "--out", made / "out", "--json").stdout
    )
    assert manifest["rows"]["train"]["bridge_orig"] > 0
    rows = json.loads(oxe("datasets", "--json").stdout)
    assert len(rows) == 98


def test_a_mixture_by_reference_is_materialized(made: Path, tmp_path: Path) -> None:
    text = (made / "m.yaml").read_text()
    (tmp_path / "r.yaml").write_text(f"{text}image: {{copy: false}}\n")
    done = oxe("tokenize", tmp_path / "r.yaml", "--index", made / "index", "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    done = oxe("materialize", tmp_path / "r", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"{len(list((made / 'out').glob('*-of-*')))} shard" in done.stdout
    for path in (made / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert json.loads(oxe("materialize", tmp_path / "r", "--out", tmp_path / "out", "--json").stdout)["format"] == 2
    done = oxe("materialize", made / "out", "--out", tmp_path / "other")
    assert (done.returncode, done.stdout) == (2, "")
    assert "has copies of its frames already" in done.stderr


def test_an_index_without_kept_episodes_is_reported(made: Path, tmp_path: Path) -> None:
    (tmp_path / "criteria.yaml").write_text("too_short: 99\n")
    done = oxe("filter", made / "in", "--out", tmp_path / "index", "--criteria", tmp_path / "criteria.yaml")
    assert done.returncode == 0
    assert "bridge_dataset: no episode is kept." in done.stdout
    assert re.search(r"too_short +10 +100\.0 %", done.stdout)
    done = oxe("tokenize", made / "m.yaml", "--index", tmp_path / "index", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "has no kept episode in the index (too_short: 10)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["filter", "{in}", "--out", "{tmp}/i", "--dataset", "bridge_datset"], "Did you mean 'bridge_dataset'?"),
        (["filter", "{tmp}/nowhere", "--out", "{tmp}/i"], "nowhere: folder not found"),
        (["filter", "{in}", "--out", "{tmp}/i", "--recipe", "documentd"], "has no recipe 'documentd'. Known: openvla."),
        (["filter", "{in}", "--out", "{tmp}/i", "--criteria", "{tmp}/c.yaml"], "c.yaml: file not found"),
        (["filter", "{in}", "--out", "{tmp}/i", "--", "--runer=x"], "invalid Beam options after --"),
        (["filter", "{in}", "--out", "{tmp}/i", "stray"], "stray"),
        (["filter", "{in}"], "--out"),
        (["tokenize", "{made}/m.yaml", "--index", "{tmp}", "--out", "{tmp}/o"], "index.json not found in"),
        (["tokenize", "{made}/n.yaml", "--index", "{made}/index", "--out", "{tmp}/o"], "Did you mean 'm.yaml'?"),
        (["tokenize", "{made}/m.yaml", "--index", "{made}/index", "--out", "{tmp}/o", "--rule", "first"], "first"),
        (["datasets", "--verdict", "passed"], "Did you mean 'pass'?"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(
    made: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"in": made / "in", "tmp": tmp_path, "made": made}
    done = oxe(*(a.format(**places) for a in arguments))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_internal_fault_is_exit_code_1_with_a_traceback_only_on_request(made: Path, tmp_path: Path) -> None:
    sabotage = tmp_path / "sitecustomize.py"
    sabotage.write_text(
        "import oxe_curate.registry as r\ndef table(*a, **k): raise ZeroDivisionError('oh')\nr.table = table\n"
    )
    env = {"PYTHONPATH": str(tmp_path)}
    plain, debug = oxe("datasets", env=env), oxe("datasets", "--debug", env=env)
    assert plain.returncode == 1
    assert debug.returncode == 1
    assert "internal error: ZeroDivisionError: oh" in plain.stderr
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


def test_datasets_as_markdown_and_filtered() -> None:
    text = oxe("datasets", "gnm", "--verdict", "fail", "--markdown").stdout
    assert "| berkeley_gnm_recon | fail |" in text
    assert "bridge_orig" not in text


def test_the_version() -> None:
    from oxe_curate import __version__

    assert oxe("--version").stdout.strip() == f"oxe-curate {__version__}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["filter", "{in}", "--out", "{in}/index"], "is inside the source"),
        (["filter", "{in}", "--out", "{made}/out"], "holds a mixture"),
        (["tokenize", "{made}/m.yaml", "--index", "{made}/index", "--out", "{made}/index"], "is the index"),
        (
            ["tokenize", "{made}/m.yaml", "--index", "{made}/index", "--out", "{in}/bridge_dataset"],
            "is inside the source",
        ),
        (["tokenize", "{made}/m.yaml", "--index", "{made}/index", "--out", "{tmp}"], "is not empty"),
        (["demo", "--out", "{made}/index"], "holds an episode index"),
        (["demo", "--out", "{made}"], "is not empty"),
    ],
)
def test_a_folder_of_something_else_is_never_written(
    made: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    places = {"in": made / "in", "tmp": tmp_path, "made": made}
    before = sorted(path for root in (made, tmp_path) for path in root.rglob("*"))
    done = oxe(*(a.format(**places) for a in arguments))
    assert done.returncode == 2, done.stdout
    assert re.search(rf"error: --out .*{message}", done.stderr)
    assert sorted(path for root in (made, tmp_path) for path in root.rglob("*")) == before


def test_a_data_set_that_matches_nothing_gets_the_closest_name() -> None:
    done = oxe("datasets", "brigde")
    assert done.returncode == 2
    assert "no data set matches 'brigde'. Did you mean 'bridge'?" in done.stderr


def test_a_published_mixture_is_known_by_name(made: Path, tmp_path: Path) -> None:
    done = oxe("tokenize", "openvla_brige", "--index", made / "index", "--out", tmp_path / "o")
    assert done.returncode == 2
    assert "Did you mean 'openvla_bridge'?" in done.stderr
    done = oxe("tokenize", "openvla_bridge", "--index", made / "index", "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["mixture", "--help"]])
def test_the_list_of_commands_is_not_cut_off(arguments: list[str]) -> None:
    assert not re.search(r"\w\.\.\.$", oxe(*arguments, env={"COLUMNS": "80"}).stdout, re.M)
