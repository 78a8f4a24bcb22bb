from pathlib import Path

import pytest

pytest.importorskip("torch")

from oxe_curate.demo import train
from oxe_curate.demo.run import run_demo


def test_the_demo_trains_evaluates_and_calls_the_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_OPTIONS", train._OPTIONS | {"steps": 2, "warmup": 0, "save_every": 1})
    run_demo(tmp_path / "demo")
    train.run_training_demo(tmp_path / "demo")
    text = capsys.readouterr().out
    for expected in ("oxe-curate train", "mean action", "the policy moves by", "oxe-curate serve"):
        assert expected in text
    assert (tmp_path / "demo/run/evaluation/index.html").exists()
