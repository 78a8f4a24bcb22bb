"""Rules that choose action tokens, on small vocabularies."""

import numpy as np
import pytest

from oxe_curate.actions.token_rules import choose_tokens, survives_text
from oxe_curate.actions.tokenizers import Vocabulary
from oxe_curate.errors import ConfigError


def words(*pieces, special=(), reserved=(), size=None) -> Vocabulary:
    """A vocabulary that matches the longest piece; unknown characters become -1."""

    def encode(text: str) -> list[int]:
        ids = []
        while text:
            fits = [p for p in pieces if isinstance(p, str) and p and text.startswith(p)]
            best = max(fits, key=len, default=text[0])
            ids.append(pieces.index(best) if best in pieces else -1)
            text = text[len(best) :]
        return ids

    return Vocabulary(
        len(pieces) if size is None else size, pieces, frozenset(special), tuple(reserved), "", "toy", encode
    )


def ids(choices) -> list[int]:
    return [choice.token_id for choice in choices]


def test_last_counts_down_from_the_size():
    assert ids(choose_tokens(words(*"abcdef", size=5), "last", 3)) == [4, 3, 2]


def test_last_rejects_special_tokens_and_small_vocabularies():
    with pytest.raises(ConfigError, match=r"last 3 ids include special tokens such as 'd'"):
        choose_tokens(words(*"abcdef", special=[3]), "last", 3)
    with pytest.raises(ConfigError, match="last 7 ids do not exist"):
        choose_tokens(words(*"abcdef"), "last", 7)


def test_reserved_then_last():
    toy = words(*"abcdef", special=[4, 5], reserved=[4, 5], size=4)
    assert ids(choose_tokens(toy, "reserved", 2)) == [5, 4]
    choices = choose_tokens(toy, "reserved", 4)
    assert ids(choices) == [5, 4, 3, 2]
    assert [choice.rank for choice in choices] == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="no reserved tokens"):
        choose_tokens(words(*"abc"), "reserved", 2)


def test_counts_take_the_least_used_with_high_ids_first_among_equals():
    counts = np.array([1000, 0, 500, 0, 400, 0])
    choices = choose_tokens(words(*"abcdef"), "counts", 3, counts)
    assert ids(choices) == [5, 3, 1]
    assert [choice.rank for choice in choices] == [0, 1, 2]


def test_a_zero_count_of_a_low_id_does_not_beat_a_rare_high_one():
    pieces = [chr(0x4E00 + i) for i in range(1000)]
    counts = np.full(1000, 1000)
    counts[3], counts[999] = 0, 1  # the low id is missing by chance; ids are assigned by frequency
    assert ids(choose_tokens(words(*pieces), "counts", 1, counts)) == [999]


def test_single_characters_first():
    counts = np.array([10, 10, 0, 0])
    assert ids(choose_tokens(words("x", "y", "u", "longword"), "counts", 1, counts)) == [2]


def test_counts_exclude_tokens_that_are_not_text():
    pieces = ["a", "b", "c", b"\xe4", " ", "\n", "", None, "s"]
    choices = choose_tokens(words(*pieces, special=[8]), "counts", 3, np.ones(9, np.int64))
    assert ids(choices) == [2, 1, 0]
    with pytest.raises(ConfigError, match="only 3 tokens"):
        choose_tokens(words(*pieces, special=[8]), "counts", 4, np.ones(9, np.int64))


def test_pieces_that_merge_with_themselves_do_not_survive():
    toy = words("a", "aa", "b")
    assert [survives_text(toy, i) for i in range(3)] == [False, True, True]


def test_a_leading_space_token_is_allowed():
    inner = words("忠", " ")
    spaced = Vocabulary(2, inner.pieces, frozenset(), (), "", "toy", lambda text: [1, *inner.encode(text)])
    assert survives_text(spaced, 0)


def test_invalid_arguments():
    with pytest.raises(ConfigError, match="--corpus"):
        choose_tokens(words(*"abc"), "counts", 2)
    with pytest.raises(ConfigError, match="none of its 3 tokens"):
        choose_tokens(words(*"abc"), "counts", 2, np.zeros(3, np.int64))
    with pytest.raises(ConfigError, match="Did you mean 'counts'"):
        choose_tokens(words(*"abc"), "count", 2)  # type: ignore[arg-type]


def test_real_llama_2(shared):
    from oxe_curate.actions.tokenizers import read_vocabulary

    vocabulary = read_vocabulary(shared / "data/tokenizers/llama2/tokenizer.model")
    assert all(survives_text(vocabulary, i) for i in range(31744, 32000))
    counts = np.zeros(32000, np.int64)
    counts[:31000] = 10
    chosen = choose_tokens(vocabulary, "counts", 256, counts)
    assert ids(chosen) == list(range(31999, 31743, -1))
    counts[31999] = 10_000  # a character that this corpus uses
    assert 31999 not in ids(choose_tokens(vocabulary, "counts", 256, counts))


def test_counts_rank_alike_in_every_release():
    """Weights were trained on the tokens of a table: a rebuilt table must have the same tokens."""
    counts = np.array([25, 7, 3, 8, 12, 24, 13, 2, 10, 18])
    chosen = choose_tokens(words("a", "b", "cc", "d", "ee", "f", "g", "hh", "i", "j"), "counts", 10, counts)
    assert ids(sorted(chosen, key=lambda choice: choice.rank)) == [8, 3, 6, 9, 1, 7, 5, 0, 2, 4]
