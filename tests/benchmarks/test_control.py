import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_tiny_run_writes_its_tables(tmp_path):
    command = [sys.executable, "-m", "benchmarks.control", "--tiny", "--repeats", "2", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--kinds", "generate", "bf16", "exact"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    rows = json.loads((tmp_path / "control.json").read_text())["rows"]
    assert [row["chunk"] for row in rows if "ms" in row] == [1, 1, 8, 8, 1]
    exact = next(row for row in rows if row.get("check") == "float32 ids equal")
    assert exact["sequences_equal"] == exact["of"] == 8
    assert "| parallel, L1 head | bf16 | 8 |" in (tmp_path / "control.md").read_text()
