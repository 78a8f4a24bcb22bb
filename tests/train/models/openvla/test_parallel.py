import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from oxe_curate.train.models.openvla import parallel
from tests.train.models.openvla.slots import parallel_states

SLOTS = 7


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(config).eval()


def embed(llama, *lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random rows whose slots end at `lengths`, padded with values that must not matter."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(lengths), max(lengths), 32, generator=generator), torch.tensor(lengths)


def test_slots_attend_to_each_other_and_padding_is_masked():
    mask = parallel.parallel_mask(torch.tensor([4, 3]), slots=2, width=5)[:, 0].int().tolist()
    assert mask[0] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert mask[1] == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]


def test_blank_ids_follow_the_last_token_of_the_prompt():
    ids, lengths = parallel.blank_ids([[1, 5, 6], [1, 5]], slots=3, pad_id=9)
    assert ids.tolist() == [[1, 5, 6, 9, 9], [1, 5, 9, 9, 9]]
    assert lengths.tolist() == [5, 4]
    assert parallel.slot_positions(torch.from_numpy(lengths), 3).tolist() == [[2, 3, 4], [1, 2, 3]]


def test_only_the_first_slot_keeps_its_embedding():
    kept = parallel.slot_embeddings(torch.ones(2, 5, 1), torch.tensor([5, 4]), slots=3)[..., 0]
    assert kept.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


def test_padding_does_not_change_a_row(llama):
    x, length = embed(llama, 12, 15)
    both = parallel_states(llama.model, x, length, SLOTS)
    single = parallel_states(llama.model, x[:1, :12], length[:1], SLOTS)
    torch.testing.assert_close(both[0], single[0], rtol=0, atol=1e-5)


def test_embeddings_at_the_slots_do_not_leak(llama):
    x, length = embed(llama, 12)
    leaked = x.clone()
    leaked[:, 12 - SLOTS + 1 :] += 1
    states = parallel_states(llama.model, x, length, SLOTS)
    assert torch.equal(states, parallel_states(llama.model, leaked, length, SLOTS))
    prompt = x.clone()
    prompt[:, 12 - SLOTS] += 1  # the last token of the prompt matters
    assert not torch.allclose(states, parallel_states(llama.model, prompt, length, SLOTS), atol=1e-3)


def test_slots_attend_in_both_directions_and_the_prompt_is_causal(llama):
    x, length = embed(llama, 12)
    x.requires_grad_(True)
    mask = parallel.additive(parallel.parallel_mask(length, SLOTS, 12), x.dtype)
    states = llama.model(inputs_embeds=x, attention_mask=mask, use_cache=False).last_hidden_state
    (first_slot,) = torch.autograd.grad(states[0, 12 - SLOTS].sum(), x, retain_graph=True)
    assert (first_slot[0].abs().sum(-1) > 0).all()
    (prompt,) = torch.autograd.grad(states[0, 12 - SLOTS - 1].sum(), x)
    assert (prompt[0].abs().sum(-1) > 0).tolist() == [True] * 5 + [False] * 7


def test_one_slot_is_causal_decoding(llama):
    x, _ = embed(llama, 9)
    causal = llama.model(inputs_embeds=x, use_cache=False).last_hidden_state[:, -1:]
    torch.testing.assert_close(parallel_states(llama.model, x, torch.tensor([9]), 1), causal)


def test_loss_is_the_mean_over_each_samples_real_actions():
    logits = torch.zeros(2, 14, 4)
    logits[0, 7:] = torch.tensor([100.0, 0, 0, 0])  # wrong, but padding
    ids = torch.ones(2, 2, 7, dtype=torch.long)
    loss = parallel.slot_loss(logits, ids, torch.tensor([[True, False], [False, False]]))
    np.testing.assert_allclose(loss, [np.log(4), 0], rtol=1e-6)


def test_predictions_are_action_ids():
    logits = torch.tensor([[9.0, 1, 2, 3], [9.0, 3, 1, 2]])
    assert parallel.best_action_ids(logits, torch.tensor([3, 1])).tolist() == [3, 1]


def test_a_chunk_is_learned_in_one_pass(llama):
    """Two actions for each of two prompts; blank slots differ only by position."""
    ids = torch.arange(28).view(2, 2, 7) % 13 + 40
    embedding = llama.get_input_embeddings()
    blank, lengths = parallel.blank_ids([[1, 7, 8], [1, 9]], 14, pad_id=0)
    mask = torch.ones(2, 2, dtype=torch.bool)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**llama.config.to_dict(), "initializer_range": 0.2})
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(80):
        x = embedding(torch.from_numpy(blank)).detach()
        states = parallel_states(model.model, x, torch.from_numpy(lengths), 14)
        loss = parallel.slot_loss(model.lm_head(states), ids, mask).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.lm_head(states).argmax(-1).view(2, 2, 7) == ids).all()
