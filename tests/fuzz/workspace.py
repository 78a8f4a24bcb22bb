"""A small folder of every kind of file that the commands read: sources, an index, a mixture and its shards."""

import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece
import tokenizers
import yaml

from oxe_curate import registry
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from tests import bridge
from tests.train.mixtures import gray_png

MIXTURE = """# two data sets
name: small
seed: 3
datasets:
  - name: bridge_orig      # WidowX
    weight: 1.0
    splits: [train]
  - {name: fractal20220817_data, weight: 0.54087122203}
  - name: kuka
    weight: 1e-1
texts:
  - {name: vqa, path: texts/a.parquet, weight: 0.5, columns: {question: question, answer: answer}}
window: 2
stride: 1
chunk: 2
image: {cameras: [primary], size: 32, quality: 95}
bounds: {low: 0.01, high: 0.99, over: kept}
bins: openvla
validation: 0.05
"""
TRAIN = """data: mix
base: base
run: run
steps: 100
learning_rate: 1e-4
seed: 3
lora: {rank: 8}
cameras: [primary]
"""


def make_workspace(root: Path) -> None:
    """Write the folder `root`, with paths relative to it where files name others."""
    root.mkdir(parents=True)
    bridge.write(root / "in", episodes={"train": [bridge.episode(i, 5 + i % 2) for i in range(4)]}, shards=1)
    run_filter(root / "in", root / "index", FilterOptions(progress=False, workers=1))
    (root / "texts").mkdir()
    rows = {
        "image": [{"bytes": gray_png(i), "path": None} for i in range(6)],
        "question": [f"q{i}" for i in range(6)],
        "answer": [f"a{i}" for i in range(6)],
    }
    pq.write_table(pa.table(rows), root / "texts/a.parquet")
    (root / "mixture.yaml").write_text(MIXTURE)
    (root / "one.yaml").write_text(
        "name: one\nvalidation: 0\ndatasets: [{name: bridge_orig, weight: 1}]\n"
        "texts: [{name: vqa, path: texts/a.parquet, weight: 1}]\n"
    )
    run_tokenize(root / "one.yaml", root / "index", root / "mix", TokenizeOptions(progress=False, workers=1))
    (root / "criteria.yaml").write_text(yaml.safe_dump(asdict(Criteria()), sort_keys=False))
    (root / "train.yaml").write_text(TRAIN)
    (root / "shares.yaml").write_text("bridge_orig: 0.7\nfractal20220817_data: 0.3 # RT-1\n")
    (root / "cards").mkdir()
    card = (registry.CARDS_DIR / "bridge_orig.yaml").read_text().replace("bridge_dataset", "my_alias")
    (root / "cards/mine.yaml").write_text(card.replace("name: bridge_orig", "name: mine", 1))
    (root / "statistics.json").write_bytes((root / "mix/dataset_statistics.json").read_bytes())
    _make_tokenizers(root / "tokenizers")
    (root / "request.json").write_text(json.dumps({"text": MIXTURE, "samples": 1000, "operation": {
        "op": "quantity", "row": 1, "quantity": "share", "value": 0.25, "keepTotal": True, "locked": [2],
        "path": ["image", "size"], "rows": {"0": 2.0}, "datasets": {"viola": 1.0}, "name": "viola", "factor": 2.0,
        "weights": {"viola": 1.0}}, "offset": 0, "count": 4, "dataset": "bridge_orig", "datasets": ["bridge_orig"],
        "low": 0.01, "high": 0.99, "method": "diversity", "base": "", "force": False}))  # fmt: skip


def _make_tokenizers(folder: Path) -> None:
    for name in ("json", "model", "pair", "ranks"):
        (folder / name).mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the robot arm moves to the drawer"] * 20), model_type="bpe", vocab_size=290,
        model_prefix=str(folder / "model/tokenizer"), byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocab = {letter: i for i, letter in enumerate(sorted(letters))} | {"ab": 256}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("a", "b")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.save(str(folder / "json/tokenizer.json"))
    (folder / "pair/vocab.json").write_text(json.dumps(vocab))
    (folder / "pair/merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "pair/tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2TokenizerFast"}')
    (folder / "ranks/tokenizer.model").write_bytes(
        b"".join(tokenizers_base64(bytes([i])) + b" %d\n" % i for i in range(256))
    )


def tokenizers_base64(piece: bytes) -> bytes:
    """A piece as tiktoken writes it."""
    import base64

    return base64.b64encode(piece)
