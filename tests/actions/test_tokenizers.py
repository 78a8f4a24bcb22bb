"""Tokenizer files of four formats: small ones made here, and real ones."""

import base64
import hashlib
import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers

from oxe_curate.actions.tokenizers import candidates, read_vocabulary
from oxe_curate.errors import ConfigError

ARM = "the robot arm moves to the drawer"


def write_ranks(path, pieces):
    path.write_bytes(b"".join(base64.b64encode(piece) + b" %d\n" % i for i, piece in enumerate(pieces)))


def write_qwen(folder, config=True):
    vocab = {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġab": 4, "Ã": 5, "©": 6}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n")
    (folder / "added_tokens.json").write_text(json.dumps({"<|endoftext|>": 7, "<|extra_0|>": 8}))
    if config:
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2TokenizerFast"}')


def write_tokenizer_json(path):
    tokenizer = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "Ġ": 3, "ä": 4}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "<|reserved_special_token_0|>"])
    tokenizer.add_tokens(["plain"])
    tokenizer.save(str(path))


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([ARM] * 20),
        model_prefix=str(folder / "m"),
        model_type="bpe",
        vocab_size=290,
        byte_fallback=True,
        control_symbols=["[control_0]"],
        minloglevel=2,
    )
    return (folder / "m.model").read_bytes()


def test_sentencepiece(tmp_path, sentencepiece_model):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model)
    vocabulary = read_vocabulary(tmp_path)
    assert vocabulary.size == len(vocabulary.pieces) == 290
    assert vocabulary.special == {0, 1, 2, 3}
    assert vocabulary.reserved == (3,)
    assert vocabulary.pieces[4:6] == (b"\x00", b"\x01")
    assert vocabulary.sha256 == hashlib.sha256(sentencepiece_model).hexdigest()
    assert "".join(vocabulary.pieces[i] for i in vocabulary.encode(ARM)) == " " + ARM


def test_tokenizer_json(tmp_path):
    path = tmp_path / "tokenizer.json"
    write_tokenizer_json(path)
    vocabulary = read_vocabulary(tmp_path)
    assert vocabulary.size == 5
    assert vocabulary.pieces == ("a", "b", "ab", " ", b"\xe4", "<s>", "<|reserved_special_token_0|>", "plain")
    assert vocabulary.special == {5, 6, 7}
    assert vocabulary.reserved == (6,)
    assert vocabulary.encode("ab a") == [2, 3, 0]
    assert vocabulary.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert vocabulary.piece(99) is vocabulary.piece(-1) is None


def test_vocab_and_merges(tmp_path):
    write_qwen(tmp_path)
    vocabulary = read_vocabulary(tmp_path)
    assert vocabulary.size == 7
    assert vocabulary.pieces == ("a", "b", "ab", " ", " ab", b"\xc3", b"\xa9", "<|endoftext|>", "<|extra_0|>")
    assert vocabulary.special == {7, 8}
    assert vocabulary.reserved == (8,)
    assert vocabulary.encode("ab ab") == [2, 4]
    assert vocabulary.encode("\u00e9") == vocabulary.encode("e\u0301") == [5, 6]  # composed first, as Qwen does
    listing = "".join(
        f"{name} {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}\n"
        for name in ("added_tokens.json", "merges.txt", "vocab.json")
    )
    assert vocabulary.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        assert read_vocabulary(tmp_path / name).sha256 == vocabulary.sha256


def test_ranks(tmp_path):
    write_ranks(tmp_path / "tokenizer.model", [b"a", b"b", b"ab", b"\xe4"])
    vocabulary = read_vocabulary(tmp_path)
    assert vocabulary.size == 4
    assert vocabulary.pieces == ("a", "b", "ab", b"\xe4")
    assert not vocabulary.special
    with pytest.raises(ConfigError, match="a rank file of 4 ranks does not tell how"):
        vocabulary.encode("ab")


def test_an_unknown_split_is_an_error_only_when_counting(tmp_path):
    write_qwen(tmp_path, config=False)
    vocabulary = read_vocabulary(tmp_path)
    with pytest.raises(ConfigError, match="is missing or does not name a class"):
        vocabulary.encode("ab")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(ConfigError, match="names 'GPT2Tokenizer'"):
        read_vocabulary(tmp_path).encode("ab")


def test_precedence_in_a_folder(tmp_path, sentencepiece_model):
    write_qwen(tmp_path)
    (tmp_path / "b.model.v3").write_bytes(sentencepiece_model)
    assert read_vocabulary(tmp_path).size == 290
    write_ranks(tmp_path / "tokenizer.model", [b"a"])
    assert read_vocabulary(tmp_path).size == 1
    write_tokenizer_json(tmp_path / "tokenizer.json")
    assert read_vocabulary(tmp_path).size == 5
    names = [path.name for path in candidates(tmp_path)]
    assert names == ["tokenizer.json", "tokenizer.model", "b.model.v3", "vocab.json"]


def test_the_format_is_detected_from_the_contents(tmp_path, sentencepiece_model):
    (tmp_path / "ranks.bin").write_bytes(sentencepiece_model)
    assert read_vocabulary(tmp_path / "ranks.bin").size == 290
    write_tokenizer_json(tmp_path / "llama-test-tokenizer.json")
    assert read_vocabulary(tmp_path / "llama-test-tokenizer.json").size == 5


def test_missing_and_ambiguous_files(tmp_path):
    with pytest.raises(ConfigError, match=r"no tokenizer found; expected tokenizer.json, tokenizer.model"):
        read_vocabulary(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        read_vocabulary(tmp_path / "tokenizer.json")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"expected both vocab.json and merges.txt"):
        read_vocabulary(tmp_path / "vocab.json")
    for name in ("a.model", "b.model"):
        write_ranks(tmp_path / name, [b"a"])
    with pytest.raises(ConfigError, match=r"several tokenizers \(a.model, b.model\)"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", "not a Hugging Face tokenizer"),
        ("tokenizer.json", b'{"model": ', "tokenizer.json:1: not valid JSON"),
        ("tokenizer.model", b"", "not a SentencePiece model"),
        ("tokenizer.model", b"\x00\x01 garbage", "not a SentencePiece model"),
        ("tokenizer.model", b"YQ== 0\nYg==\n", "damaged tiktoken rank file at line 2"),
        ("tokenizer.model", b"YQ== 0\nYg== 2\n", "do not count from 0 to 1"),
        ("tokenizer.model", b"YQ== 0\nY? 1\n", "damaged tiktoken rank file at line 2"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"), [("vocab.json", "[]"), ("vocab.json", '{"a": "b"}'), ("added_tokens.json", "{")]
)
def test_damaged_vocab_and_merges(tmp_path, name, text):
    write_qwen(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match="damaged"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("name", "size", "total", "hello"),
    [
        ("llama2/tokenizer.model", 32000, 32000, [15043, 29892, 3186, 29991]),
        ("llama2/llama-test-tokenizer.json", 32000, 32003, [15043, 29892, 3186, 29991]),
        ("llama3", 128000, 128256, [9906, 11, 1917, 0]),
        ("qwen2_5", 151643, 151680, [9707, 11, 1879, 0]),
    ],
)
def test_real_tokenizers(shared, name, size, total, hello):
    vocabulary = read_vocabulary(shared / "data/tokenizers" / name)
    assert (vocabulary.size, len(vocabulary.pieces)) == (size, total)
    assert vocabulary.encode("Hello, world!") == hello
    text = "Out: größte 抽屉 12345\n\n  robot's 🤖"
    parts = [vocabulary.pieces[i] for i in vocabulary.encode(text)]
    joined = b"".join(part if isinstance(part, bytes) else part.encode() for part in parts).decode()
    assert joined.removeprefix(" " if "llama2" in name else "") == text
    if name == "llama3":  # output of tiktoken 0.14 with Meta's pattern
        ids = vocabulary.encode("robot take to pick up the can?\nOut: 忠忠")
        assert ids == [18748, 1935, 311, 3820, 709, 279, 649, 5380, 2729, 25, 90040, 254, 112427]


def test_real_llama_3(shared):
    vocabulary = read_vocabulary(shared / "data/tokenizers/llama3")
    assert len(vocabulary.reserved) == 246
    assert vocabulary.reserved[:3] == (128002, 128003, 128012)


def test_real_mistral_starts_with_control_tokens(shared):
    with pytest.raises(ConfigError, match="several tokenizers"):
        read_vocabulary(shared / "data/tokenizers/mistral")
    vocabulary = read_vocabulary(shared / "data/tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3")
    assert vocabulary.size == 32768
    assert vocabulary.special == set(range(3)) | set(range(3, 751))
