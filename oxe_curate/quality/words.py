"""Instructions that say nothing, and damaged ones: decided from the text itself, whatever the other episodes say."""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.letters import Letters
from oxe_curate.quality.measure import Judgement, Part
from oxe_curate.quality.text_damage import DAMAGE_KINDS, damage_kind

EMPTY_KINDS = (
    "the text says nothing", "a placeholder", "an unfilled template", "no letters", "an identifier, not words",
    "the same words again and again", "an absurdly long text", "letters at random",
    "texts that differ by a number only",
)  # fmt: skip
"""What is wrong with a text that names no task."""
_RANDOM = EMPTY_KINDS.index("letters at random")


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NOTHING = _listed(
    """a an the this that these those it its some any one two three four five six seven eight nine ten first
    second third my your our and or of to in on for with by from at as is are was be been being do does did
    doing done make task tasks episode episodes ep demo demos demonstration demonstrations trajectory
    trajectories traj test tests testing tested trial trials try run runs sample samples example examples
    instruction instructions command commands lang language natural text texts string str description prompt
    label data dataset record recording recorded collected number num no nr id idx index file step steps
    part name title goal goals image images robot robots arm manipulation action actions behavior behaviour
    skill skills activity policy motion movement something anything things thing object objects manipulate
    stuff whatever someone perform performs performing execute executes executing complete completes
    completing finish follow follows following out please given here want need required correctly
    successfully well again new old other various misc miscellaneous random generic default general basic
    simple unspecified scene env environment set split train val validation eval evaluation debug temp tmp
    teleop teleoperation teleoperated human operator user expert session job version ver copy final true
    false yes ok okay hello world hi what how lets let us you i we can could should will would sure
    accomplish achieve attempt accordingly as above below same previous next ditto idem"""
)
"""Words that name neither a motion nor an object."""
_PLACEHOLDERS = _listed(
    """todo tbd tba tbc fixme na none null nil nan undefined unknown unlabeled unlabelled unannotated untitled unnamed
    placeholder dummy foo bar foobar baz qux blah bla asdf asdfg asdfgh asdfjkl qwerty qwer qwertyuiop zxcv zxcvb hjkl
    jkl lorem ipsum dolor sit amet consectetur adipiscing elit empty missing blank nothing nolang pending insert enter
    fill specified available provided annotation annotated annotate language_instruction not void error"""
)
_FOREIGN = _listed(
    """prueba essai aufgabe tarea tâche tache ninguno ninguna aucun aucune keine kein leer vide vacío задача задание
    тест нет 任务 测试 無 无 指令 タスク テスト なし 테스트 작업"""
)
_TEMPLATE = re.compile(
    "|".join(
        (
            r"\$?\{[^{}]*\}|\{\{|\}\}|<\s*[A-Za-z_][\w .-]*\s*/?>|\$[A-Za-z_]\w*|(?<!\w)__+|__+(?!\w)",
            r"\[[A-Z][A-Z_ \d]+\]",
            r"\[(?:obj(?:ect)?|target|task|verb|noun|location|place|color|insert[^\]]*|your[^\]]*)[_\d]*\]",
            r"%\(\w+\)s|%[sd](?!\w)",
            r"\b(?:TODO|FIXME|TBD|XX+|xxx+|(?i:lorem|ipsum))\b",
        )
    )
)
_IDENTIFIER = re.compile(
    "|".join(
        (
            r"\w+://\S+|(?:[A-Za-z]:\\|\.{0,2}/)\S+",
            r"\S+\.(?:npz|npy|pkl|pickle|h5|hdf5|tfrecord|json|parquet|mp4|zarr|bag|csv|txt)",
            r"[0-9a-fA-F]{8}(?:-?[0-9a-fA-F]{4,}){1,4}|(?=\S*\d)(?=\S*[a-zA-Z])[0-9a-zA-Z]{16,}",
        )
    )
)
_WORD = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_LONG = 1000
"""Characters; the longest instructions of Open X-Embodiment have about 300."""


def empty_kind(text: str) -> int:
    """Which of `EMPTY_KINDS` a text is, -1 for a text that may name a task; "" is -1 too.

    >>> EMPTY_KINDS[empty_kind("Episode 12")]
    'the text says nothing'
    """
    return _empty_kind(text) if text else -1


@functools.lru_cache(1 << 16)
def _empty_kind(text: str) -> int:
    plain = unicodedata.normalize("NFKC", text).strip()
    if len(plain) > _LONG:
        return 6
    letters = sum(c.isalpha() for c in plain)
    if not letters:
        return 3
    if _IDENTIFIER.fullmatch(plain):
        return 4
    words = [word.casefold() for word in _WORD.findall(_CAMEL.sub(" ", plain).replace("'", "").replace("\u2019", ""))]
    slashed = plain.casefold().replace("/", "").replace(".", "")
    said = [word for word in words if len(word) > 1 or not word.isascii()]
    if len(said) == 1 and said[0] in ("insert", "fill", "enter"):
        return -1
    if len(said) == 1 and said[0] in ("move", "act", "go", "interact", "operate"):
        return 0
    if slashed in _PLACEHOLDERS or all(_is_mash(word) for word in words):
        return 1
    shouted = plain == plain.upper() and " " in plain  # TODO is a Spanish word
    if (found := _TEMPLATE.search(plain)) and not (shouted and found.group().isalpha()):
        return 2
    if not [word for word in said if word not in _NOTHING and word not in _FOREIGN]:
        return 0
    if not [w for w in said if w not in _NOTHING and w not in _PLACEHOLDERS and w not in _FOREIGN and not _is_mash(w)]:
        return 1
    if _repeats(plain, words):
        return 5
    if all(word.isascii() and len(word) > 2 and not set(word) & set("aeiouy") for word in said):
        return _RANDOM
    return -1


def _is_mash(word: str) -> bool:
    """One letter several times, or neighbouring keys."""
    if word in _PLACEHOLDERS:
        return True
    same = len(word) > 1 and len(set(word)) == 1
    return word.isascii() and (same or (len(word) > 2 and any(word in row for row in _KEYS)))


_KEYS = tuple(
    row[::way] * 2
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm", "asdf", "sdf", "jkl", "abcdefgh")
    for way in (1, -1)
)


def _repeats(text: str, words: list[str]) -> bool:
    """One word three times in a row, few different words in a long text, or a phrase at least three times."""
    in_a_row = max((sum(1 for _ in group) for _, group in itertools.groupby(words)), default=0)
    if in_a_row > 3 or (in_a_row == 3 and len(set(words)) < 3):
        return True
    if len(words) >= 12 and len(set(words)) < 0.3 * len(words):
        return True
    size = len(words)
    if size >= 6 and any(size % n == 0 and words == words[:n] * (size // n) for n in range(1, size // 3 + 1)):
        return True
    joined = re.sub(r"[\s.,;!]+", "", text)[:_LONG]
    return re.search(r"(\w)\1{4,}", joined) is not None or re.fullmatch(r"(.{2,}?)\1{2,}", joined) is not None


@dataclass(frozen=True)
class SharedWords:
    """What the texts of a data set have in common.

    Attributes:
        shared: words in several episodes.
        letters: how letters follow each other, in these words too.
    """

    shared: frozenset[str]
    letters: Letters

    def kind(self, text: str) -> int:
        """Like `empty_kind`, and whether a text that shares no word with others has letters at random."""
        found = empty_kind(text)
        if found < 0 and self.letters.is_random(text) and not self.shared & {*_words(text)}:
            return _RANDOM
        return found


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


@dataclass(frozen=True)
class Words:
    """Criteria `meaningless_text` and `damaged_text`."""

    criteria = ("meaningless_text", "damaged_text")
    columns = frozenset({"instruction"})

    def fit(self, sample: EpisodeBatch) -> SharedWords:
        """The words that several episodes of the data set share."""
        episodes = collections.Counter(word for text in sample.instruction for word in {*_words(text)})
        shared = frozenset(word for word, count in episodes.items() if count > 1)
        return SharedWords(shared, Letters(shared))

    def part(self, batch: EpisodeBatch, fitted: SharedWords) -> Part:
        """The kind of each text, and hashes by which texts are compared."""
        listed, place = distinct_texts(batch.instruction)
        columns = {
            "empty": np.array([fitted.kind(text) for text in listed], np.int64),
            "damage": np.array([damage_kind(text) for text in listed], np.int64),
            "text": np.array([_hash(text) for text in listed], np.int64),
            "numbered": np.array(
                [_hash(re.sub(r"\d+", "0", t)) if re.search(r"\d", t) else 0 for t in listed], np.int64
            ),
        }
        return {name: values[place] for name, values in columns.items()}

    def judge(self, part: Part, fitted: SharedWords) -> Mapping[str, Judgement]:
        """1 for a text that is empty or damaged, else 0."""
        empty = part["empty"].copy()
        empty[(empty < 0) & _serial(part["text"], part["numbered"])] = len(EMPTY_KINDS) - 1
        return {
            name: Judgement(
                value=(kind >= 0).astype(np.float64), limit=0.5, step=np.full(len(kind), -1), what=kind, words=words
            )
            for name, kind, words in (
                ("meaningless_text", empty, EMPTY_KINDS), ("damaged_text", part["damage"], DAMAGE_KINDS)
            )
        }  # fmt: skip


def _serial(text: NDArray[np.int64], numbered: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which texts differ from others by their number only, if that is so of nearly all episodes: a serial number."""
    counts = np.unique(numbered[numbered != 0], return_counts=True)
    if not len(counts[0]) or len(text) < 8:
        return np.zeros(len(text), bool)
    same = numbered == counts[0][counts[1].argmax()]
    serial = same.mean() > 0.8 and len(np.unique(text[same])) > 0.5 * same.sum()
    return np.asarray(same & serial)


def distinct_texts(texts: Iterable[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The different texts in order of appearance, and which one each is: int64 (n,)."""
    numbers: dict[str, int] = {}
    place = [numbers.setdefault(text, len(numbers)) for text in texts]
    return list(numbers), np.array(place, np.int64)


def _hash(text: str) -> int:
    """The same in every process."""
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big", signed=True
    )
