from pathlib import Path

import pytest

from oxe_curate.demo.run import run_demo


def test_the_demo_runs_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(tmp_path / "demo")
    text = capsys.readouterr().out
    for expected in (
        "no_language",
        "no_third_person_camera",
        "not_finite",
        "tokens 31",
        "gripper",
        "Where to look next",
    ):
        assert expected in text
    assert (tmp_path / "demo/mixture/manifest.json").exists()
    run_demo(tmp_path / "demo")  # a second run finds everything done
