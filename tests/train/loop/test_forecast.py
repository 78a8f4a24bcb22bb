"""The text of a forecast; test_run.py tests that measuring has no side effects."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from oxe_curate.train.loop.forecast import Forecast, _duration, _numbers


def made(**values: object) -> Forecast:
    datasets = {
        "bridge_orig": {"rows": 6000, "samples": 12000, "passes": 1.5},
        "web": {"rows": 2000, "samples": 4000, "passes": 2},
    }
    usual = {
        "steps": 1000, "left": 1000, "global_batch": 16, "samples": 8000, "epochs": 2.0,
        "datasets": datasets,
        "parameters": 1_000_000, "trained": 12_345, "samples_per_second": 40.0, "hours": 400 / 3600,
        "peak_gib": 9.04, "memory_gib": 12.0, "checkpoint_gib": 0.5, "disk_gib": 100.0, "device": "a GPU", "notes": (),
    }  # fmt: skip
    return Forecast(**{**usual, **values})


def test_lines_show_steps_epochs_hours_and_memory() -> None:
    assert made().lines() == [
        "1,000 steps of 16 samples: 2 epochs of 8,000 rows",
        "12,345 of 1,000,000 weights trained (1.23 %)",
        "  bridge_orig  6,000 rows, 12,000 samples, each step 1.5 times",
        "  web          2,000 rows,  4,000 samples, each step 2 times",
        "7 minutes on a GPU at 40.0 samples/s (measured)",
        "GPU memory: peak 9.0 of 12.0 GiB",
        "checkpoint size: 512 MiB; free disk space: 100.0 GiB",
    ]


def test_a_resumed_run_shows_remaining_steps_and_a_cpu_no_memory() -> None:
    lines = made(left=400, peak_gib=None, memory_gib=None, notes=("look out",)).lines()
    assert lines[0] == "1,000 steps of 16 samples, 400 remaining: 2 epochs of 8,000 rows"
    assert not any("GPU memory" in line for line in lines)
    assert lines[-1] == "note: look out"


@pytest.mark.parametrize(
    ("hours", "text"),
    [(0.0001, "a second"), (0.01, "36 seconds"), (0.5, "30 minutes"), (1.9, "114 minutes"), (26.04, "26.0 hours")],
)
def test_durations_are_readable(hours: float, text: str) -> None:
    assert _duration(hours) == text


def test_packed_weights_are_counted_individually() -> None:
    packed = SimpleNamespace(quant_state=SimpleNamespace(shape=torch.Size([4, 6])), numel=lambda: 12)
    assert _numbers(packed) == 24
    assert _numbers(torch.zeros(3, 5)) == 15
