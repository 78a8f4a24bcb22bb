import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")

from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.errors import ConfigError
from oxe_curate.train.data.batch import IGNORE, pad_right
from oxe_curate.train.models.openvla.prompt import Prompter, action_prompt

LLAMA = SimpleNamespace(bos_token_id=1, eos_token_id=2, pad_token_id=32000)
INSTRUCTIONS = ("put the pot in the sink", "Pick up  the Coke can ", "", "open drawer (top), then close it!", "放下 🤖")


@pytest.fixture(scope="module")
def llama(shared) -> Prompter:
    return Prompter.of(shared / "data/tokenizers/llama2/llama-test-tokenizer.json", LLAMA)


@pytest.fixture(scope="module")
def upstream(shared):
    """OpenVLA's method: ids to text, tokenized with the prompt; without the stop token, which differs in this file."""
    tokenizer = tokenizers.Tokenizer.from_file(str(shared / "data/tokenizers/llama2/llama-test-tokenizer.json"))

    def encode(instruction, ids):
        human = f"What action should the robot take to {instruction.lower()}?".strip()
        return tokenizer.encode(f"In: {human}\nOut: " + tokenizer.decode(ids).strip()).ids

    return encode


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_training_ids_equal_those_of_upstream(llama, upstream, instruction):
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = ActionTokens.default().ids(rng.integers(0, 256, 7))
        assert [*llama.prompt(instruction), *actions] == upstream(instruction, actions.tolist())


def test_every_pair_of_action_ids_equals_upstream(llama, upstream):
    tokens = ActionTokens.default().token_id.tolist()
    for first in tokens[::5]:
        pairs = [token for second in tokens for token in (first, second)]
        assert [*llama.prompt("move"), *pairs] == upstream("move", pairs)


def test_inference_prompt_ends_with_the_space_token(llama):
    encoded = llama.vocabulary.encode("In: What action should the robot take to put the pot?\nOut:")
    assert llama.prompt("Put the pot") == [1, *encoded, 29871]


def test_sentencepiece_model_and_tokenizer_json_agree(llama, shared):
    model = Prompter.of(shared / "data/tokenizers/llama2/tokenizer.model", LLAMA)
    for instruction in INSTRUCTIONS[:4]:
        assert model.prompt(instruction) == llama.prompt(instruction)


def test_other_tokenizers_have_no_space_token(shared):
    config = SimpleNamespace(bos_token_id=None, eos_token_id=[151643, 151645], pad_token_id=None)
    qwen = Prompter.of(shared / "data/tokenizers/qwen2_5", config)
    assert (qwen.glue, qwen.bos, qwen.pad) == ((), 151643, 151643)
    assert qwen.prompt("move") == [151643, *qwen.vocabulary.encode(action_prompt("move"))]


def test_a_question_is_masked_and_its_answer_learned(llama):
    ids, labels = llama.text("What is on the table?", "A red apple.")
    assert ids == [1, *llama.vocabulary.encode("In: What is on the table?\nOut: A red apple."), 2]
    learned = [label for label in labels if label != IGNORE]
    assert learned == [*llama.vocabulary.encode("A red apple."), 2]
    assert ids[-len(learned) :] == learned


def test_all_tokens_of_a_caption_are_learned(llama):
    ids, labels = llama.text("", "A red apple.")
    assert ids == [1, *llama.vocabulary.encode("A red apple."), 2]
    assert labels == [IGNORE, *ids[1:]]


def test_prompter_is_picklable(llama):
    again = pickle.loads(pickle.dumps(llama))
    assert again.prompt("move") == llama.prompt("move")


def test_missing_tokenizer_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no tokenizer found"):
        Prompter.of(Path(tmp_path), LLAMA)


def test_pad_right():
    assert pad_right([[1, 2, 3], [4]], 9).tolist() == [[1, 2, 3], [4, 9, 9]]
    assert pad_right([[1, 2, 3], [4]], 9, multiple=4).shape == (2, 4)
