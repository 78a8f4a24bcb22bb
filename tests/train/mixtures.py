"""Small mixtures made from Bridge-like episodes with known frames and numbers."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from tests import bridge

ONE = "name: m\ndatasets: [{name: bridge_orig, weight: 1}]\n"


def index(root: Path, episodes: int = 14) -> Path:
    """Write source shards below root/in and index them in root/index: episode i has 6 + i % 5 raw steps."""
    bridge.write(root / "in", episodes={"train": [bridge.episode(i, 6 + i % 5) for i in range(episodes)]})
    run_filter(root / "in", root / "index", FilterOptions(progress=False, workers=1))
    return root / "index"


def real_index(root: Path, shared: Path) -> Path:
    """Index the real Bridge shards."""
    (root / "in").mkdir()
    (root / "in" / "bridge_dataset").symlink_to(shared / "data/rlds/bridge_dataset")
    options = FilterOptions(progress=False, workers=1, criteria=Criteria(allow_leak=True))
    run_filter(root / "in", root / "index", options)
    return root / "index"


def build(index: Path, out: Path, text: str = "", shard_bytes: int = 8000) -> MixtureFolder:
    """Tokenize `ONE` and the keys in `text` (or a whole mixture that begins with "name:")."""
    path = out.with_suffix(".yaml")
    path.write_text(text if text.startswith("name:") else ONE + text)
    run_tokenize(path, index, out, TokenizeOptions(progress=False, workers=1, shard_bytes=shard_bytes))
    return MixtureFolder.open(str(out))


def gray_png(value: int, size: int = 16) -> bytes:
    """A PNG of one shade of gray."""
    sink = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def texts(path: Path, count: int) -> Path:
    """An image-text source of `count` rows; row i is gray i with the question "q<i>" and the answer "a<i>"."""
    path.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "image": [{"bytes": gray_png(i), "path": None} for i in range(count)],
            "question": [f"q{i}" for i in range(count)],
            "answer": [f"a{i}" for i in range(count)],
        }
    )
    pq.write_table(table, path / "a.parquet")
    return path


def shard_rows(mixture: MixtureFolder, split: str) -> list[dict[str, object]]:
    """All rows of a split as pyarrow reads them, shard after shard."""
    return [row for name in mixture.shards(split) for row in pq.read_table(mixture.folder.path(name)).to_pylist()]
