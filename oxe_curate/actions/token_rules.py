"""Rules that choose which tokens of a vocabulary become action tokens.

`last`      The last n ids, bin 0 the highest: `size - 1 - bin`. OpenVLA's rule; the released checkpoints trained
            exactly these rows.
`reserved`  The tokens that a vocabulary reserves (Llama 3's <|reserved_special_token_N|>), highest id first. They
            never occur in text, so nothing that the model knows is overwritten. Llama 3 has fewer than 256 that no
            published layout uses (246 by its rank file); the remaining bins take the last ids of the ordinary
            vocabulary, as `last` does. Reserved rows were never trained: train the embedding and the output layer too.
`counts`    The tokens that a corpus uses least. A count of zero says little (thousands of ids have it), so the
            observed frequency is averaged with a prior 1/(id + 1), since ids are assigned from frequent to rare; a
            piece of several characters counts four times. Special tokens, byte tokens and pieces that do not survive
            conversion to text and back are excluded. The chosen ids are sorted, highest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from oxe_curate.actions.tokenizers import Vocabulary
from oxe_curate.errors import ConfigError, did_you_mean

TokenRule = Literal["last", "reserved", "counts"]

_MULTI_CHARACTER = 4.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token, its position in the order of choice, and the reason."""

    token_id: int
    rank: int
    why: str


def choose_tokens(
    vocabulary: Vocabulary, rule: TokenRule, number: int, counts: NDArray[np.int64] | None = None
) -> list[Choice]:
    """Return `number` tokens, the one of bin 0 first.

    Args:
        vocabulary: to choose from.
        rule: see the module's docstring.
        number: of tokens.
        counts: int64 (at least `vocabulary.size`,), occurrences of each id; required by rule "counts".

    Raises:
        ConfigError: an unknown rule, no counts, or too few suitable tokens.
    """
    if rule == "last":
        return _last(vocabulary, number)
    if rule == "reserved":
        return _reserved(vocabulary, number)
    if rule == "counts":
        if counts is None:
            raise ConfigError("rule 'counts' needs a corpus; give files or folders with --corpus")
        return _counted(vocabulary, number, counts)
    raise ConfigError(f"unknown rule {rule!r}. {did_you_mean(str(rule), get_args(TokenRule))}")


def _last(vocabulary: Vocabulary, number: int) -> list[Choice]:
    ids = range(vocabulary.size - 1, vocabulary.size - 1 - number, -1)
    taken = [i for i in ids if i < 0 or i in vocabulary.special]
    if taken:
        problem = f"include special tokens such as {vocabulary.piece(taken[0])!r}" if taken[0] >= 0 else "do not exist"
        raise ConfigError(
            f"{vocabulary.source}: the last {number} ids {problem}; use rule reserved or counts, or fewer bins"
        )
    return [Choice(i, rank, "one of the last ids") for rank, i in enumerate(ids)]


def _reserved(vocabulary: Vocabulary, number: int) -> list[Choice]:
    if not vocabulary.reserved:
        raise ConfigError(
            f"{vocabulary.source}: no reserved tokens such as Llama 3's <|reserved_special_token_0|>; "
            f"use rule last or counts"
        )
    ids = sorted(vocabulary.reserved, reverse=True)[:number]
    chosen = [Choice(i, rank, "reserved; never occurs in text") for rank, i in enumerate(ids)]
    rest = _last(vocabulary, number - len(ids))
    return chosen + [
        Choice(choice.token_id, len(ids) + choice.rank, "one of the last ids; no reserved token left")
        for choice in rest
    ]


def _counted(vocabulary: Vocabulary, number: int, counts: NDArray[np.int64]) -> list[Choice]:
    counts = counts[: vocabulary.size]
    total = int(counts.sum())
    if len(counts) < vocabulary.size or total == 0:
        raise ConfigError(f"{vocabulary.source}: the corpus contains none of its {vocabulary.size} tokens")
    prior = 1.0 / np.arange(1, vocabulary.size + 1)
    score = counts / total + prior / prior.sum()
    pieces = [vocabulary.piece(i) for i in range(vocabulary.size)]
    score *= [1.0 if isinstance(piece, str) and len(piece) == 1 else _MULTI_CHARACTER for piece in pieces]

    chosen: list[Choice] = []
    for i in np.argsort(score, kind="stable").tolist():
        if len(chosen) == number:
            break
        piece = pieces[i]
        if i in vocabulary.special or not isinstance(piece, str) or not survives_text(vocabulary, i):
            continue
        length = "single character" if len(piece) == 1 else f"{len(piece)} characters"
        seen = f"{counts[i]} of {total} tokens"
        chosen.append(Choice(i, len(chosen), f"{seen}, {length}, survives text"))
    if len(chosen) < number:
        raise ConfigError(
            f"{vocabulary.source}: only {len(chosen)} tokens survive conversion to text and back; expected {number}"
        )
    return sorted(chosen, key=lambda choice: -choice.token_id)


def survives_text(vocabulary: Vocabulary, token_id: int) -> bool:
    """Return whether a token's piece, once and twice in a row, is tokenised to that token again.

    The space token that SentencePiece puts before a text is ignored. Byte pieces never survive.
    """
    piece = vocabulary.piece(token_id)
    if not isinstance(piece, str) or not piece.strip():
        return False
    for times in (1, 2):
        ids = vocabulary.encode(piece * times)
        if len(ids) > times and vocabulary.piece(ids[0]) == " ":
            ids = ids[1:]
        if ids != [token_id] * times:
            return False
    return True
