"""A bounded part of `make fuzz`: no damaged file ends in an internal fault, a hang or a silent change."""

from collections.abc import Iterator

import pytest

from tests.fuzz.mutate import mutation, mutations
from tests.fuzz.run import Reader, is_failure
from tests.fuzz.targets import TARGETS

SLOW = 4
"""Mutations of files whose readers run a whole command."""
COUNTS = {
    "mixture": 12, "criteria": 40, "shares": 30, "card": 8, "train config": 20, "statistics": 40, "action tokens": 60,
    "tokenizer.json": 15, "tokenizer.model": 15, "ranks": 20, "vocab.json": 15, "merges.txt": 15, "editor text": 4,
    "editor request": 4,
}  # fmt: skip


NEVER_REFUSED = {"tokenizer_config.json", "records, skipped", "editor text", "editor request"}
"""Their damage is in the result: which record was skipped, or an answer with an error."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    opened = Reader(tmp_path_factory.mktemp("fuzz"))
    yield opened
    opened.close()


@pytest.mark.parametrize("target", TARGETS)
def test_damage_ends_in_one_clear_error(reader: Reader, target: str) -> None:
    answers = [(reader.read(target, 11, number), number) for number in range(COUNTS.get(target, SLOW))]
    wrong = [f"number {number}: {answer}" for answer, number in answers if is_failure(target, answer)]
    assert wrong == []
    assert target in NEVER_REFUSED or any(answer["outcome"] == "refused" for answer, _ in answers)


def test_a_mutation_is_a_function_of_its_seed_and_number() -> None:
    data = b"name: m\ndatasets: [{name: kuka, weight: 1}]\n"
    for kind in ("yaml", "binary"):
        first = list(mutations(data, kind, 3, 20))
        assert first == list(mutations(data, kind, 3, 20))
        assert first[7] == mutation(data, kind, 3, 7)
        assert len({damaged for _, damaged in first}) > 12
