"""What reads each kind of file, and the result that an undamaged file gives."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from oxe_curate import registry
from oxe_curate.errors import CurateError


@dataclass(frozen=True)
class Target:
    """A file of the workspace, and what reads it.

    Attributes:
        file: glob of the damaged file, relative to the workspace; its first match.
        kind: of its mutations.
        read: reads the file in the workspace; returns a text that stands for the result.
        checked: a damaged file must not give another result, since it has a checksum. Otherwise the damaged file may
            be a valid other file.
    """

    file: str
    kind: str
    read: Callable[[Path], str]
    checked: bool = False


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()


def _forget() -> None:
    """Clear the caches of files."""
    for cached in (registry._read, getattr(registry, "_text", None)):
        if cached:
            cached.cache_clear()


def _mixture(root: Path) -> str:
    from oxe_curate.mixture.check import check_file
    from oxe_curate.mixture.members import members
    from oxe_curate.mixture.shares import breakdown
    from oxe_curate.mixture.show import mixture_table, problems_text
    from oxe_curate.mixture.spec import mixture_yaml, read_mixture
    from oxe_curate.mixture.text_sizes import text_sizes

    path = root / "mixture.yaml"
    found = check_file(path, samples=1000)
    assert len(found) < 1100, f"{len(found)} findings"
    assert sum(len(f.message) for f in found) < 1_000_000, "long findings"
    _shown(problems_text(found, path.name))
    mixture = read_mixture(path)
    held = members(mixture)
    result = breakdown(mixture, held, 1000)
    _shown(mixture_table(result, text_sizes(mixture, root)))
    mixture_yaml(mixture)
    return _digest((found, result))


def _shown(what: Any) -> None:
    import io

    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=200).print(what)
    text.getvalue().encode()


def _criteria(root: Path) -> str:
    from oxe_curate.filter.criteria import read_criteria

    return _digest(read_criteria(root / "criteria.yaml"))


def _shares(root: Path) -> str:
    from oxe_curate.mixture import convert
    from oxe_curate.mixture.members import members

    mixture, targets = convert.read_quantities(root / "shares.yaml", "shares")
    found = members(mixture)
    converted = convert.with_quantities(mixture, found, targets, "shares")
    convert.to_text(converted).encode()
    return _digest(convert.quantities(converted, members(converted), "epochs", 1000))


def _card(root: Path) -> str:
    from oxe_curate.registry.features import check_features
    from tests import bridge

    _forget()
    card = registry.load("mine", root / "cards")
    registry.load("my_alias", root / "cards")
    rows = registry.table(root / "cards")
    widths = {"action": (7,), "observation/state": (7,), "language_instruction": ()}
    check_features(card, widths)
    steps = bridge.episode(0)["steps"]
    flat = {f"observation/{k}": v for k, v in steps["observation"].items() if k == "state"}
    flat |= {"action": steps["action"], "language_instruction": np.array(steps["language_instruction"], object)}
    trajectories = [card.standardize(flat, name).action.tobytes() for name in card.recipes]
    return _digest((rows, trajectories))


def _train_config(root: Path) -> str:
    from oxe_curate.train.config import read_train_config

    return _digest(read_train_config(root / "train.yaml", {}))


def _statistics(root: Path) -> str:
    from oxe_curate.actions.bounds import read_statistics

    found = read_statistics(root / "statistics.json")
    for bounds in found.values():
        bounds.normalize(np.zeros(bounds.width))
    return _digest({name: bounds.to_json() for name, bounds in found.items()})


def _tokens(root: Path) -> str:
    from oxe_curate.actions.action_tokens import ActionTokens

    tokens = ActionTokens.read(root / "mix/action_tokens.parquet")
    return _digest((tokens.to_table().to_pydict(), tokens.to_table().schema.metadata))


def _vocabulary(folder: str, root: Path) -> str:
    from oxe_curate.actions.action_tokens import ActionTokens
    from oxe_curate.actions.tokenizers import read_vocabulary

    found = read_vocabulary(root / "tokenizers" / folder)
    tokens = ActionTokens.build(found)
    assert len(found.pieces) < 10_000_000
    try:
        ids = found.encode("the robot moves")
    except CurateError:  # the rank file does not tell how a text is split
        ids = []
    return _digest((found.size, found.pieces, sorted(found.special), found.reserved, ids, tokens.token_id.tolist()))


def _tokenized(root: Path) -> str:
    """The shards that tokenize writes from the index and the source."""
    from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize

    out = root / "again"
    shutil.rmtree(out, ignore_errors=True)
    try:
        run_tokenize(root / "one.yaml", root / "index", out, TokenizeOptions(progress=False, workers=1))
        # rows, not bytes: a shard's metadata holds a hash of the index files, of which it reads some columns only
        tables = [(p.name, pq.read_table(p, use_threads=False).to_pydict()) for p in sorted(out.glob("*.parquet"))]
        return _digest(tables)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _index(root: Path) -> str:
    """What `mixture check`, `report` and the editor read of an index."""
    from oxe_curate.index.store import Index
    from oxe_curate.mixture.check import check_file
    from oxe_curate.mixture.members import members
    from oxe_curate.mixture.spec import read_mixture

    index = Index.open(root / "index")
    held = members(read_mixture(root / "one.yaml"), index)
    found = check_file(root / "one.yaml", index, 1000)
    assert len(found) < 1100, f"{len(found)} findings"
    return _digest((held, found, _tokenized(root)))


def _rows(root: Path) -> str:
    """Every row of a mixture as training reads it."""
    from oxe_curate.tokenize.folder import MixtureFolder
    from oxe_curate.train.data.assemble import assemble
    from oxe_curate.train.data.episodes import EpisodeReader
    from oxe_curate.train.data.local import LocalRows
    from oxe_curate.train.data.rows import SampleFormat
    from oxe_curate.train.data.shards import split_shards

    mixture = MixtureFolder.open(str(root / "mix"))
    sample_format = SampleFormat.of(mixture, proprio=True)
    results = []
    for split in ("train", "text"):
        rows = LocalRows(mixture, split_shards(mixture, split), sample_format)
        everything = np.arange(len(rows))
        batch = assemble(everything, rows.claim(everything)(), sample_format, 16, 0)
        results.append(batch)
    episodes = EpisodeReader(mixture, image_size=16, split="train")
    return _digest([[np.asarray(v).tobytes() if isinstance(v, np.ndarray) else v for v in vars(b).values()]
                    for b in results if hasattr(b, "__dict__")] + [episodes.ids])  # fmt: skip


def _filtered(root: Path, **options: Any) -> str:
    from oxe_curate.filter.pipeline import FilterOptions, run_filter
    from oxe_curate.index.store import Index
    from oxe_curate.rlds import remote

    for cached in vars(remote).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()
    out = root / "filtered"
    shutil.rmtree(out, ignore_errors=True)
    try:
        run_filter(root / "in", out, FilterOptions(progress=False, workers=1, **options))
        index = Index.open(out)
        tables = [index.table(path, None).to_pydict() for name in index.datasets for path in index.files(name)]
        return _digest((index.datasets["bridge_dataset"].summary, tables))
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _inspected(root: Path) -> str:
    from oxe_curate.inspection.check import check_dataset

    return _digest(check_dataset("bridge_orig", root / "in"))


@functools.cache
def _editor(root: Path) -> Any:
    from starlette.testclient import TestClient

    from oxe_curate.editor.catalogue import Catalogue
    from oxe_curate.editor.files import MixtureFile
    from oxe_curate.editor.security import Access
    from oxe_curate.editor.server import editor_application
    from oxe_curate.index.store import Index

    access = Access.local(8441)
    file = MixtureFile(root / "edited.yaml")
    app = editor_application(file, Catalogue(Index.open(root / "index")), access)
    client = TestClient(app, base_url="http://127.0.0.1:8441", raise_server_exceptions=False)
    client.cookies.set(access.cookie, access.session)
    return client


def _requests(root: Path) -> str:
    """The damaged body at every route of the editor; no answer is an internal error."""
    client = _editor(root)
    data = (root / "request.json").read_bytes()
    headers = {"content-type": "application/json", "origin": "http://127.0.0.1:8441"}
    answers = []
    bodies = [data]
    try:
        body = json.loads(data)
        for op in ("set", "rename", "add", "remove", "weights", "scale", "quantity", "adopt"):
            operation = body.get("operation") if isinstance(body, dict) else None
            if isinstance(operation, dict) and isinstance(operation.get("op"), str):
                bodies.append(json.dumps({**body, "operation": {**operation, "op": op}}).encode())
    except (ValueError, RecursionError):
        pass
    for route in ("analyse", "edit", "check", "samples", "dataset", "histograms"):
        for sent in bodies if route == "edit" else bodies[:1]:
            answer = client.post(f"/api/{route}", content=sent, headers=headers)
            if answer.status_code >= 500:
                raise RuntimeError(f"/api/{route}: {answer.status_code} {answer.text[:300]}")
            assert len(answer.content) < 4_000_000, f"/api/{route}: {len(answer.content)} bytes"
            answers.append((route, answer.status_code, answer.content))
    return _digest(answers)


def _edited_text(root: Path) -> str:
    """The damaged mixture as the text in the editor; no answer is an internal error."""
    client = _editor(root)
    text = (root / "mixture.yaml").read_bytes().decode("utf-8", "surrogateescape")
    headers = {"content-type": "application/json", "origin": "http://127.0.0.1:8441"}
    operations: list[dict[str, Any]] = [
        {"op": "set", "path": ["image", "size"], "value": 64}, {"op": "rename", "row": 1, "name": "viola"},
        {"op": "add", "datasets": {"viola": 1.0}}, {"op": "remove", "rows": [0]},
        {"op": "quantity", "row": 0, "quantity": "share", "value": 0.5, "keepTotal": True},
    ]  # fmt: skip
    requests = [(route, {"text": text, "samples": 1000}) for route in ("analyse", "check", "samples")]
    requests += [("edit", {"text": text, "operation": operation}) for operation in operations]
    answers = []
    for route, body in requests:
        answer = client.post(f"/api/{route}", content=json.dumps(body).encode(), headers=headers)
        if answer.status_code >= 500:
            raise RuntimeError(f"/api/{route}: {answer.status_code} {answer.text[:300]}")
        assert len(answer.content) < 8_000_000, f"/api/{route}: {len(answer.content)} bytes"
        answers.append(answer.content)
    return _digest(answers)


TARGETS = {
    "mixture": Target("mixture.yaml", "yaml", _mixture),
    "criteria": Target("criteria.yaml", "yaml", _criteria),
    "shares": Target("shares.yaml", "yaml", _shares),
    "card": Target("cards/mine.yaml", "yaml", _card),
    "train config": Target("train.yaml", "yaml", _train_config),
    "statistics": Target("statistics.json", "json", _statistics),
    "action tokens": Target("mix/action_tokens.parquet", "parquet", _tokens, checked=True),
    "tokenizer.json": Target("tokenizers/json/tokenizer.json", "json", functools.partial(_vocabulary, "json")),
    "tokenizer.model": Target("tokenizers/model/tokenizer.model", "binary", functools.partial(_vocabulary, "model")),
    "ranks": Target("tokenizers/ranks/tokenizer.model", "binary", functools.partial(_vocabulary, "ranks")),
    "vocab.json": Target("tokenizers/pair/vocab.json", "json", functools.partial(_vocabulary, "pair")),
    "merges.txt": Target("tokenizers/pair/merges.txt", "binary", functools.partial(_vocabulary, "pair")),
    "tokenizer_config.json": Target(
        "tokenizers/pair/tokenizer_config.json", "json", functools.partial(_vocabulary, "pair")
    ),
    "index.json": Target("index/index.json", "json", _index, checked=True),
    "index file": Target("index/bridge_dataset/1.0.0/*.parquet", "parquet", _index, checked=True),
    "manifest.json": Target("mix/manifest.json", "json", _rows, checked=True),
    "mixture.yaml of the shards": Target("mix/mixture.yaml", "yaml", _rows, checked=True),
    "shard": Target("mix/train-*.parquet", "parquet", _rows, checked=True),
    "text shard": Target("mix/text-*.parquet", "parquet", _rows, checked=True),
    "text source": Target("texts/a.parquet", "parquet", _tokenized),
    "records": Target("in/bridge_dataset/1.0.0/*.tfrecord-*", "tfrecord", functools.partial(_filtered, verify=True)),
    "records, not verified": Target("in/bridge_dataset/1.0.0/*.tfrecord-*", "tfrecord", _filtered),
    "records, skipped": Target(
        "in/bridge_dataset/1.0.0/*.tfrecord-*", "tfrecord", functools.partial(_filtered, skip_corrupt=True, verify=True)
    ),
    "records, tokenized": Target("in/bridge_dataset/1.0.0/*.tfrecord-*", "tfrecord", _tokenized, checked=True),
    "records, inspected": Target("in/bridge_dataset/1.0.0/*.tfrecord-*", "tfrecord", _inspected),
    "dataset_info.json": Target("in/bridge_dataset/1.0.0/dataset_info.json", "json", _filtered),
    "features.json": Target("in/bridge_dataset/1.0.0/features.json", "json", _filtered),
    "editor text": Target("mixture.yaml", "yaml", _edited_text),
    "editor request": Target("request.json", "json", _requests),
}
