import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_tiny_run_writes_tables_of_all_contenders(tmp_path):
    command = [sys.executable, "-m", "benchmarks.control", "--tiny", "--repeats", "2", "--out", str(tmp_path)]
    kinds = ["generate", "eager", "bf16", "exact"]
    done = subprocess.run([*command, "--kinds", *kinds], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    rows = json.loads((tmp_path / "control.json").read_text())["rows"]
    assert [row["chunk"] for row in rows if "ms" in row] == [1, 1, 1, 8, 8]
    exact = [row for row in rows if row.get("check", "").startswith("float32 ids equal")]
    assert [row["sequences_equal"] for row in exact] == [row["of"] for row in exact] == [8] * 2
    close = [row for row in rows if row.get("check", "").startswith("bf16 agreement")]
    assert len(close) == 1
    assert all(row["shortfall"] < row["logit_std"] / 10 for row in close)
    table = (tmp_path / "control.md").read_text()
    assert "| parallel, L1 head | bf16 | 8 |" in table
    assert "- time of token by token, eager relative to token by token: step " in table
