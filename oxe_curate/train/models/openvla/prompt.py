r"""OpenVLA's prompt: token ids and labels for training and inference, identical to upstream.

    BOS  In: What action should the robot take to {instruction}?\nOut:  [29871]  7 * K action ids  EOS

OpenVLA decodes the action ids to text and tokenizes prompt and text together. With Llama 2's tokenizer the result is
the space token 29871 followed by the same ids (checked for every pair of the 256), so the text is skipped here.
Tokenizers without such a piece get no token in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from oxe_curate.actions.tokenizers import Vocabulary, read_vocabulary
from oxe_curate.errors import ConfigError
from oxe_curate.train.data.batch import IGNORE

Ids = list[int]


def action_prompt(instruction: str) -> str:
    """The text before an action."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


@dataclass(frozen=True)
class Prompter:
    """OpenVLA's prompt for a tokenizer. Picklable: the tokenizer is read at its first use.

    Attributes:
        tokenizer: folder or file.
        bos, eos, pad: ids of special tokens.
    """

    tokenizer: Path
    bos: int
    eos: int
    pad: int
    _cache: dict[str, Ids] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, folder: str | Path, text_config: Any, pad: int | None = None) -> Prompter:
        """Combine the tokenizer of a checkpoint and the special tokens of its language model's configuration.

        Raises:
            ConfigError: no tokenizer, or no eos token.
        """
        bos, eos = (_first(getattr(text_config, name, None)) for name in ("bos_token_id", "eos_token_id"))
        if eos is None:
            raise ConfigError(f"{folder}: text_config: eos_token_id is missing")
        pad = pad if pad is not None else _first(getattr(text_config, "pad_token_id", None))
        made = cls(Path(folder), eos if bos is None else bos, eos, eos if pad is None else pad)
        made.vocabulary  # noqa: B018 (raises if the tokenizer is missing)
        return made

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Tokens of the tokenizer."""
        return read_vocabulary(self.tokenizer)

    @cached_property
    def glue(self) -> tuple[int, ...]:
        """The space token between prompt and action, 29871 for Llama 2; () for a tokenizer without it."""
        ids = self.vocabulary.encode("Out: ")
        before = self.vocabulary.encode("Out:")
        is_sentencepiece = any(piece == b"\n" for piece in self.vocabulary.pieces)  # has byte tokens
        return tuple(ids[len(before) :]) if is_sentencepiece and ids[: len(before)] == before else ()

    def prompt(self, instruction: str) -> Ids:
        """Ids of the prompt: BOS first, `glue` last."""
        return [self.bos, *self._encode(action_prompt(instruction)), *self.glue]

    def text(self, question: str, answer: str) -> tuple[Ids, Ids]:
        r"""Ids and labels of an image-text sample: "In: {question}\nOut: {answer}", or a caption only."""
        if not question:
            target = [*self._encode(answer.strip()), self.eos]
            return [self.bos, *target], [IGNORE, *target]
        before = self._encode(f"In: {question.strip()}\nOut:")
        whole = self._encode(f"In: {question.strip()}\nOut: {answer.strip()}")
        shared = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        target = [*whole[shared:], self.eos]
        return [self.bos, *whole[:shared], *target], [IGNORE] * (shared + 1) + target

    def _encode(self, text: str) -> Ids:
        ids = self._cache.get(text)  # several threads collate
        if ids is None:
            if len(self._cache) > 20_000:
                self._cache.clear()
            ids = self._cache[text] = list(self.vocabulary.encode(text))
        return ids

    def __getstate__(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer, "bos": self.bos, "eos": self.eos, "pad": self.pad, "_cache": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _first(value: Any) -> int | None:
    """The first id: Llama 3's configuration lists several eos ids."""
    value = value[0] if isinstance(value, list | tuple) and value else value
    return value if isinstance(value, int) else None
