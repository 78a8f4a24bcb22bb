import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from oxe_curate.cli.mixture import mixture_app
from oxe_curate.errors import ConfigError


def run(*arguments: str) -> Result:
    return CliRunner().invoke(mixture_app, list(arguments))


def test_importing_the_commands_is_light() -> None:
    code = "import sys, oxe_curate.cli.mixture; print({'numpy', 'pyarrow', 'pydantic', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_check_prints_a_bounded_number_of_lines(tmp_path: Path) -> None:
    levels = [f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 10)}]" for i in range(1, 5)]
    bomb = "\n".join(["b0: &b0 [x, x]", *levels, "name: m", "datasets: *b4", ""])
    same = "name: m\ndatasets:\n" + "  - {name: viola, weight: 1}\n" * 5000
    unknown = "name: m\ndatasets:\n" + "".join(f"  - {{name: violax{i}, weight: 1}}\n" for i in range(200))
    long = f"name: {'x' * 10**5}\ndatasets: [{{name: {'y' * 10**5}, weight: {'9' * 200}}}]\n"
    for number, text in enumerate((bomb, same, unknown, long)):
        (tmp_path / f"{number}.yaml").write_text(text)
        result = run("check", str(tmp_path / f"{number}.yaml"))
        assert result.exit_code == 2
        assert len(result.stdout.splitlines()) < 3000
        assert len(result.stdout) < 300_000


def test_show() -> None:
    result = run("show", "oxe_magic_soup_plus", "--samples", "1000000")
    assert result.exit_code == 0
    assert re.search(r"13\.33 % +3,786,400\*", result.stdout)
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
    assert "24 data sets with the same weight" in result.stdout
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


def test_windows_and_texts_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "name: m\ndatasets: [{name: bridge_orig, weight: 1}, {name: kuka, weight: 1}]\nwindow: 12\nstride: 6\n"
        "texts: [{name: vqa, path: vqa.parquet, weight: 0.5}, {name: web, path: web.parquet, weight: 1}]\n"
    )
    pq.write_table(pa.table({"image": [b"x"] * 10, "caption": ["a"] * 10}), tmp_path / "vqa.parquet")
    shown = run("show", str(path)).stdout
    assert "one is drawn every 6 steps" in shown
    assert ["vqa", "0.5", "10", "5"] in [line.split() for line in shown.splitlines()]
    assert "no such file" in " ".join(shown.split())  # a long path wraps
    data = json.loads(run("show", str(path), "--json").stdout)
    whole = json.loads(run("show", str(path), "--json", "--samples", "600").stdout)
    assert data["one_pass"] * 6 == pytest.approx(sum(row["steps"] for row in data["rows"]) * 0.95)
    assert whole["rows"][0]["epochs"] == pytest.approx(600 / data["one_pass"])
    vqa, web = data["texts"]
    assert (vqa["rows"], vqa["drawn"], vqa["problem"]) == (10, 5, None)
    assert web["rows"] is None
    assert "no such file" in web["problem"]
    shares = tmp_path / "again.yaml"
    shares.write_text(run("convert", str(path), "--to", "weights").stdout)
    assert json.loads(run("diff", str(path), str(shares), "--json").stdout)["settings"] == []
