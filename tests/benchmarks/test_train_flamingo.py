import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_tiny_run_writes_its_table(tmp_path):
    command = [sys.executable, "-m", "benchmarks.train_flamingo", "--tiny", "--out", str(tmp_path)]
    kinds = ["--kinds", "3b-reference", "3b", "--heads", "mlp", "mlp-history"]
    done = subprocess.run([*command, *kinds], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    rows = json.loads((tmp_path / "train-flamingo.json").read_text())["rows"]
    assert len(rows) == 1 + 2 * 3
    assert all(row["samples_per_second"] > 0 and row["trained"] < row["weights"] for row in rows)
    assert "| 3b | mlp | bf16, checkpointing, cached |" in (tmp_path / "train-flamingo.md").read_text()
