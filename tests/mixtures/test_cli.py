import json
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from oxe_curate.errors import ConfigError
from oxe_curate.mixtures.cli import mixture_app


def run(*arguments: str) -> Result:
    return CliRunner().invoke(mixture_app, list(arguments))


def test_importing_the_commands_is_light() -> None:
    code = "import sys, oxe_curate.mixtures.cli; print({'numpy', 'pyarrow', 'pydantic', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_show() -> None:
    result = run("show", "oxe_magic_soup_plus", "--samples", "1000000")
    assert result.exit_code == 0
    assert "13.33 %    3,786,400*" in result.stdout
    assert "* published count" in result.stdout
    data = json.loads(run("show", "octo_oxe_flex_act_soup", "--json").stdout)
    assert "rh20t" in data["unknown"]
    assert data["rows"][0]["origin"] == "published"
    assert "≤ " in run("show", "octo_oxe_flex_act_soup").stdout


def test_check_ends_with_2_on_an_error() -> None:
    assert run("check", "openvla_bridge_rt_1").exit_code == 0
    result = run("check", "oxe_magic_soup_plus")
    assert result.exit_code == 2
    assert "openvla_oxe_magic_soup_plus.yaml:" in result.stdout
    assert "1 error, " in result.stdout
    data = json.loads(run("check", "oxe_magic_soup_plus", "--json").stdout)
    assert (data[0]["code"], data[0]["dataset"]) == ("fails_criterion", "dobbe")


def test_diff() -> None:
    result = run("diff", "oxe_magic_soup_plus", "oxe_magic_soup_plus_minus")
    assert "24 data sets have the same weight" in result.stdout
    assert "x 1.85" in result.stdout
    assert "kuka" in run("diff", "oxe_magic_soup_plus", "oxe_magic_soup_plus_minus", "--all").stdout
    data = json.loads(run("diff", "oxe_magic_soup_plus", "oxe_magic_soup_plus_minus", "--json").stdout)
    assert len(data["changes"]) == 27


def test_convert_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "shares.yaml"
    path.write_text(run("convert", "rt1x", "--to", "shares").stdout)
    again = run("convert", str(path), "--from", "shares", "--to", "shares", "--json")
    shares = json.loads(again.stdout)
    assert abs(shares["jaco_play"] - 20 / 268) < 1e-6
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(run("convert", str(path), "--from", "shares", "--to", "weights").stdout)
    back = json.loads(run("convert", str(mixture), "--to", "shares", "--json").stdout)
    assert all(abs(back[name] - share) < 1e-12 for name, share in shares.items())


def test_list_and_a_typo() -> None:
    assert "commit c8f03f4" in run("list").stdout
    assert len(json.loads(run("list", "--json").stdout)) == 30
    assert isinstance(run("show", "oxe_magic_soop").exception, ConfigError)
