"""What the benchmarks compare is what they say: each side's loss against an independent way to the same number."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model

from peft_be.losses import OutputHead, cross_entropy, divergence
from peft_be.prompting.reconstruction import reconstruction_example
from peft_be.training.row_trainer import RowCollator, final_hidden_states, predicting
from peft_be.tuner import BETokenConfig


PROMPT = "You are a lighthouse keeper who hates visitors, and you answer in short, rude sentences full of sea words."
QUERIES = ["What did you see today?", "How old is the lamp, and who built it?", "May I come in?"]


def test_texts_have_the_length_that_is_asked_for(tiny_tokenizer):
    from reference import prompt_of_length, text_of_length

    for length in (7, 500):
        text = text_of_length(tiny_tokenizer, "one two three four five six seven eight nine", length)
        assert len(tiny_tokenizer(text)["input_ids"]) == pytest.approx(length, abs=1)
    assert len(tiny_tokenizer(prompt_of_length(tiny_tokenizer, 300))["input_ids"]) == pytest.approx(300, abs=3)


def test_reference_computes_the_losses_of_the_package(smollm2, smollm2_tokenizer):
    from reference import TAU, Reference

    reference = Reference(smollm2, smollm2_tokenizer, PROMPT, QUERIES, 6, seed=1)
    full, student = next(reference.rows)
    answer = reference.answer(full)
    assert 0 < len(answer) <= 6
    kd = reference.distil(student, answer, reference.teach(full, answer))
    reconstruction = reference.reconstruct()
    (gradient,) = torch.autograd.grad(kd + reconstruction, reference.be)

    config = BETokenConfig.for_tokenizer(smollm2_tokenizer, smollm2.get_input_embeddings().num_embeddings, 1, True)
    model, head = get_peft_model(smollm2, config), OutputHead(smollm2)
    model.base_model.set_rows("default", reference.be.detach()[None])
    model.base_model.set_ae_row("default", reference.ae[None])
    teacher_ids = torch.tensor([full + answer])
    teacher = final_hidden_states(model, {"input_ids": teacher_ids})[0, len(full) - 1 : -1].detach()
    student_hidden = final_hidden_states(model, {"input_ids": torch.tensor([student + answer])})[
        0, len(student) - 1 : -1
    ]
    kl = divergence(student_hidden, teacher, head, temperature=TAU).mean()
    log_t = F.log_softmax(head.logits(teacher) / TAU, dim=-1)
    entropy = -(log_t.exp() * log_t).sum(-1).mean()
    row = reconstruction_example(smollm2_tokenizer, config.be_token_ids, config.ae_token_id, reference.prompt_ids)
    inputs = RowCollator(0)([dict(zip(("input_ids", "labels"), row))])
    expected = cross_entropy(*predicting(final_hidden_states(model, inputs), inputs), head).mean()
    assert kd.item() == pytest.approx(TAU**2 * (kl + entropy).item(), rel=1e-4)
    assert reconstruction.item() == pytest.approx(expected.item(), rel=1e-4)
    (TAU**2 * kl + expected).backward()
    (row,) = (p for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(row.grad[0], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


def test_reference_takes_the_shipped_ae_row(smollm2, smollm2_tokenizer, capsys):
    from reference import Reference

    from peft_be.adapters.ae_row import load_ae_row, shipped_ae
    from peft_be.models import SMOLLM2_REPO

    random = Reference(smollm2, smollm2_tokenizer, PROMPT, QUERIES, 4, seed=1)
    assert "random" in capsys.readouterr().out
    smollm2.name_or_path = SMOLLM2_REPO
    shipped = Reference(smollm2, smollm2_tokenizer, PROMPT, QUERIES, 4, seed=1)
    expected = load_ae_row(shipped_ae(smollm2), smollm2, smollm2_tokenizer)[0]
    assert torch.equal(shipped.ae, expected) and not torch.equal(random.ae, expected)
    assert torch.equal(shipped.be, random.be) and "random" not in capsys.readouterr().out


def test_reference_learns(tiny_model, tiny_tokenizer):
    from reference import KD_WEIGHT, Reference

    reference = Reference(tiny_model, tiny_tokenizer, PROMPT, QUERIES[:1], 6, seed=1)
    full, student = next(reference.rows)
    answer = reference.answer(full)
    teacher = reference.teach(full, answer)

    @torch.no_grad()
    def loss():
        kd = reference.distil(student, answer, teacher)
        return (KD_WEIGHT * kd + (1 - KD_WEIGHT) * reference.reconstruct()).item()

    before, table = loss(), reference.table.clone()
    for _ in range(15):
        assert reference.step() == len(answer)
    assert loss() < before
    assert torch.equal(reference.table, table)


def test_reference_meets_every_query_in_a_pass(tiny_model, tiny_tokenizer):
    from reference import Reference

    reference = Reference(tiny_model, tiny_tokenizer, PROMPT, QUERIES, 4, seed=1)
    passes = [[tuple(next(reference.rows)[0]) for _ in QUERIES] for _ in range(4)]
    assert all(len(set(rows)) == len(QUERIES) for rows in passes)
    assert len(set(map(tuple, passes))) > 1


def test_a_cartridge_of_the_whole_prompt_is_the_teacher(smollm2, smollm2_tokenizer):
    """Then the cross-entropy is the entropy, and nothing but the positions' alignment can make it differ."""
    from peft import initialize_kv_prefix_from_past_key_values
    from training import TOP_K, Cartridge

    bare = copy.deepcopy(smollm2)
    cartridge = Cartridge(smollm2, smollm2_tokenizer, PROMPT, QUERIES, 4, num_tokens=8)
    teacher, student, answer_tokens = cartridge.write_answer()
    assert teacher[-len(student) :] == student and 0 < answer_tokens <= 4
    short = cartridge.loss(teacher, student).item()
    length = len(teacher) - len(student)

    whole = Cartridge(copy.deepcopy(bare), smollm2_tokenizer, PROMPT * 2, QUERIES, 4, num_tokens=length)
    with torch.no_grad():
        cache = bare(input_ids=torch.tensor([teacher[:length]]), use_cache=True).past_key_values
        logits = bare(input_ids=torch.tensor([teacher])).logits[0, length:-1]
    initialize_kv_prefix_from_past_key_values(whole.model, past_key_values=cache)
    top = F.log_softmax(logits, dim=-1).topk(TOP_K, dim=-1).values
    entropy = -(top.exp() * top).sum(-1).mean().item()
    assert whole.loss(teacher, student).item() == pytest.approx(entropy, rel=1e-3)
    assert short > 1.05 * entropy


def test_a_cartridge_step_moves_the_cache_alone(tiny_model, tiny_tokenizer):
    from training import Cartridge

    before = copy.deepcopy(tiny_model.state_dict())
    cartridge = Cartridge(tiny_model, tiny_tokenizer, PROMPT, QUERIES, 4, num_tokens=4)
    (parameter,) = cartridge.parameters
    start = parameter.detach().clone()
    assert len(parameter) == 3  # the first token is frozen
    assert 0 < cartridge.step() <= 4
    assert not torch.equal(parameter, start)
    assert all(torch.equal(before[name], value) for name, value in tiny_model.state_dict().items())


@pytest.mark.parametrize("all_positions", [True, False])
def test_the_plain_step_is_the_same_step(all_positions, smollm2, smollm2_tokenizer, tmp_path):
    from scaling import Plain
    from training import Ours

    data = {"query": QUERIES, "answer": ["Fog. Nothing but fog.", "Older than you.", "No. Go back to your boat."]}
    ours = Ours(smollm2, smollm2_tokenizer, PROMPT, data, 4, 3, 1, str(tmp_path))
    plain = Plain(ours, smollm2_tokenizer, PROMPT, all_positions)
    inputs = next(ours.batches)
    (row,) = (p for p in ours.trainer.model.parameters() if p.requires_grad)
    losses, gradients = [], []
    for side in (ours, plain):
        loss = side.loss(inputs)
        loss.backward()
        losses.append(loss.item())
        gradients.append(row.grad.clone())
        row.grad = None
    assert losses[0] > 1e-2
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-2, atol=1e-3 * gradients[0].abs().max().item())


def test_held_out_kl_is_the_trainers(smollm2, smollm2_tokenizer, tmp_path):
    from datasets import Dataset
    from time_to_kl import HeldOut

    from peft_be import BEDistillConfig, BEDistillTrainer

    held_out = HeldOut(copy.deepcopy(smollm2), smollm2_tokenizer, PROMPT, QUERIES[1:], 4)
    args = BEDistillConfig(str(tmp_path), kd_weight=1.0, max_answer_length=4)
    datasets = [Dataset.from_dict({"query": queries}) for queries in (QUERIES[:1], QUERIES[1:])]
    trainer = BEDistillTrainer(smollm2, args, PROMPT, *datasets, processing_class=smollm2_tokenizer)
    row = trainer.model.base_model.get_rows("default")
    kl = held_out.kl(row)
    assert kl == pytest.approx(trainer.evaluate()["eval_kl"], rel=1e-3)
    assert held_out.kl(torch.zeros_like(row)) != pytest.approx(kl, rel=1e-2)
    assert held_out.no_prompt_kl > 1e-4
