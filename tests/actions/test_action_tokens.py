"""The table of action tokens, compared with OpenVLA's ActionTokenizer and Llama 2's files."""

import pickle

import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.actions.bins import ActionBins
from oxe_curate.actions.tokenizers import Vocabulary
from oxe_curate.errors import ConfigError, DataError, StorageError

LLAMA_2 = ActionTokens.default()


def vocabulary(size=300, special=(), reserved=(), sha256="a" * 64) -> Vocabulary:
    """A vocabulary whose piece i is one character, which is its own token."""
    pieces = tuple(chr(0x4E00 + i) for i in range(max([size, *(i + 1 for i in special)])))
    return Vocabulary(
        size, pieces, frozenset(special), tuple(reserved), sha256, "toy", lambda text: [ord(c) - 0x4E00 for c in text]
    )


def test_openvla_ids():
    # OpenVLA: id = 32000 - digitize(clip(x)); 0 -> 31872, 1 -> 31744, -1 -> 31999
    ids = LLAMA_2.ids(ActionBins().encode(np.array([-1, 0, 1, 3], np.float32)))
    np.testing.assert_array_equal(ids, [31999, 31872, 31744, 31744])
    assert ids.dtype == np.int64


def test_openvla_values():
    # HF predict_action: centre[clip(32000 - id - 1, 0, 254)]
    ids = np.array([31743, 31744, 31745, 31872, 31999, 32000, 0, 99999])
    decoded = LLAMA_2.decode(ids, clip=True)
    edges = np.linspace(-1, 1, 256)
    expected = ((edges[:-1] + edges[1:]) / 2)[np.clip(32000 - ids - 1, 0, 254)]
    np.testing.assert_array_equal(decoded, expected.astype(np.float32))
    np.testing.assert_allclose(decoded[[1, 2, 4]], [0.99608, 0.99608, -0.99608], atol=1e-5)


@given(st.lists(st.integers(0, 255)))
def test_bins_and_ids_are_inverse(bins):
    for tokens in (LLAMA_2, ActionTokens.build(vocabulary(800, range(100, 330), range(100, 330)), "reserved")):
        np.testing.assert_array_equal(tokens.bins(tokens.ids(bins)), bins)


def test_ids_outside_the_table():
    with pytest.raises(DataError, match="token 29871 is not an action token"):
        LLAMA_2.bins([31744, 29871])
    np.testing.assert_array_equal(LLAMA_2.bins([[0, 31743], [32000, 2**40]], clip=True), [[255, 255], [0, 0]])
    with pytest.raises(DataError, match="integers"):
        LLAMA_2.ids([0.5])
    with pytest.raises(DataError, match=r"0 \.\. 15"):
        ActionTokens.default(ActionBins("uniform", 16)).ids([16])


def test_empty_arrays_keep_their_shape():
    assert LLAMA_2.ids(np.empty((0, 7), np.uint8)).shape == (0, 7)
    assert LLAMA_2.bins(np.empty((0, 7), np.int64)).shape == (0, 7)


@pytest.mark.parametrize("name", ["tokenizer.model", "llama-test-tokenizer.json"])
def test_real_llama_2(shared, name):
    tokens = ActionTokens.build(shared / "data/tokenizers/llama2" / name)
    np.testing.assert_array_equal(tokens.token_id, LLAMA_2.token_id)
    np.testing.assert_array_equal(tokens.token_id, np.arange(31999, 31743, -1))
    assert tokens.vocabulary_size == 32000  # without the three added tokens of the JSON file
    assert (tokens.piece[0], tokens.piece[255]) == ("给", "忠")
    assert all(len(piece) == 1 for piece in tokens.piece)


def test_real_llama_3_reserved(shared):
    tokens = ActionTokens.build(shared / "data/tokenizers/llama3", "reserved")
    assert tokens.token_id.tolist()[:244] == list(range(128255, 128011, -1))
    assert tokens.token_id.tolist()[244:246] == [128003, 128002]
    assert tokens.token_id.tolist()[246:] == list(range(127999, 127989, -1))
    assert "no reserved token left" in tokens.report()[250]["why"]


@pytest.mark.parametrize(("folder", "size"), [("llama3", 128000), ("qwen2_5", 151643)])
def test_last_never_takes_control_tokens(shared, folder, size):
    tokens = ActionTokens.build(shared / "data/tokenizers" / folder)
    np.testing.assert_array_equal(tokens.token_id, size - 1 - np.arange(256))


@pytest.mark.parametrize("bins", [ActionBins(), ActionBins("uniform"), ActionBins("uniform", 32)])
def test_file_round_trip(tmp_path, bins):
    counts = np.arange(300)[::-1].copy()
    for tokens in (
        ActionTokens.default(bins),
        ActionTokens.build(vocabulary(), "last", bins),
        ActionTokens.build(vocabulary(), "counts", bins, counts),
    ):
        path = tmp_path / "action_tokens.parquet"
        tokens.write(path)
        again = ActionTokens.read(path)
        assert again.to_table().equals(tokens.to_table(), check_metadata=True)
        assert again.tokenizer_sha256 == tokens.tokenizer_sha256
        assert again.action_bins == bins
        first = path.read_bytes()
        again.write(path)
        assert path.read_bytes() == first


def test_a_table_can_be_pickled():
    again = pickle.loads(pickle.dumps(LLAMA_2))
    assert again.to_table().equals(LLAMA_2.to_table(), check_metadata=True)
    assert again.ids([127])[0] == 31872


def test_columns_of_the_file(tmp_path):
    LLAMA_2.write(tmp_path / "action_tokens.parquet")
    frame = polars.read_parquet(tmp_path / "action_tokens.parquet")
    assert frame.columns == ["bin", "token_id", "piece", "count", "rank", "low", "center", "high"]
    assert frame["token_id"][127] == 31872
    assert frame["low"][127] <= 0 < frame["high"][127]
    assert (frame["high"][:-1] == frame["low"][1:]).all()
    metadata = pq.read_schema(tmp_path / "action_tokens.parquet").metadata
    assert (metadata[b"vocabulary_size"], metadata[b"rule"], metadata[b"bins"]) == (b"32000", b"last", b"openvla")


def test_damaged_files(tmp_path):
    path = tmp_path / "action_tokens.parquet"
    with pytest.raises(StorageError):
        ActionTokens.read(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a Parquet file"):
        ActionTokens.read(path)
    new = LLAMA_2.to_table()
    other = new["token_id"].to_pylist()
    other[3] = 77
    old = {key: value for key, value in new.schema.metadata.items() if key != b"content"} | {b"format": b"1"}
    table = new.replace_schema_metadata(old)
    pq.write_table(table, path)
    assert ActionTokens.read(path).to_table().equals(new)
    for damaged, message in [
        (new.set_column(1, new.schema.field("token_id"), pa.array(other, pa.int32())), "differ from their hash"),
        (new.replace_schema_metadata({**new.schema.metadata, b"vocabulary_size": b"32001"}), "differ from their hash"),
        (new.replace_schema_metadata({**old, b"format": b"2"}), "differ from their hash"),
        (table.replace_schema_metadata({"format": "9"}), "got '9'"),
        (table.replace_schema_metadata(None), "got None"),
        (table.drop_columns(["token_id"]), "damaged"),
        (table.slice(1), "does not count up"),
        (table.set_column(6, "center", table["low"]), "centres"),
        (table.set_column(1, "token_id", [[5] * 256]), "same token"),
        (table.replace_schema_metadata({**old, b"vocabulary_size": b"9" * 5000}), "damaged"),
        (table.replace_schema_metadata({**table.schema.metadata, b"bins": b"log"}), "unknown kind 'log'"),
    ]:
        pq.write_table(damaged, path)
        with pytest.raises(DataError, match=message):
            ActionTokens.read(path)


def test_check_tokenizer(shared):
    folder = shared / "data/tokenizers/llama2"
    tokens = ActionTokens.build(folder / "tokenizer.model")
    tokens.check_tokenizer(folder)
    tokens.check_tokenizer(folder / "tokenizer.model")
    LLAMA_2.check_tokenizer(folder)  # made without a file: only the size is compared
    for other in (folder / "llama-test-tokenizer.json", folder.parent / "qwen2_5"):
        with pytest.raises(ConfigError, match=r"another tokenizer.*\n.*sha256"):
            tokens.check_tokenizer(other)
    with pytest.raises(ConfigError, match="151643"):
        LLAMA_2.check_tokenizer(folder.parent / "qwen2_5")


def test_check_tokenizer_accepts_any_file_of_a_folder(shared, tmp_path):
    source = shared / "data/tokenizers/llama2"
    (tmp_path / "tokenizer.model").write_bytes((source / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((source / "llama-test-tokenizer.json").read_bytes())
    for name in ("tokenizer.model", "llama-test-tokenizer.json"):
        ActionTokens.build(source / name).check_tokenizer(tmp_path)


def test_the_report_is_in_order_of_choice():
    counts = np.full(300, 50)
    counts[[7, 250]] = 0
    rows = ActionTokens.build(vocabulary(), "counts", ActionBins("uniform", 4), counts).report()
    assert [row["rank"] for row in rows] == [0, 1, 2, 3]
    assert rows[0] == {
        "rank": 0,
        "bin": 3,
        "token_id": 250,
        "piece": chr(0x4E00 + 250),
        "count": 0,
        "why": "0 of 14900 tokens, single character, survives text",
    }


def test_a_foreign_id_takes_the_nearest_ids_bin_in_every_release():
    """Of two that are as near the higher one: with rule `last` that is the lower bin."""
    bins = ActionBins("uniform", 4)
    columns = {"piece": (None,) * 4, "count": None, "rank": np.arange(4, dtype=np.int32), "action_bins": bins}
    gaps = ActionTokens(token_id=np.array([40, 10, 30, 16]), vocabulary_size=100, rule="counts", **columns)
    ids = np.array([0, 10, 12, 13, 14, 16, 22, 23, 24, 34, 35, 36, 40, 41, 2**40])
    expected = [1, 1, 1, 3, 3, 3, 3, 2, 2, 2, 0, 0, 0, 0, 0]
    assert gaps.bins(ids, clip=True).tolist() == expected
    assert gaps.decode(ids, clip=True).tolist() == [(-0.75, -0.25, 0.25, 0.75)[b] for b in expected]
    assert LLAMA_2.bins([31742, 31743, 31744, 31745, 31998, 31999, 32000, 32001], clip=True).tolist() == [
        255, 255, 255, 254, 1, 0, 0, 0,
    ]  # fmt: skip
