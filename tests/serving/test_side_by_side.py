"""What the page shows, without the page: the answers of each adapter in each form, and how far they are apart."""

import threading

import pytest
import torch

from peft_be import PromptRenderer, evaluate_fidelity, load_adapter
from peft_be.serving.side_by_side import PromptComparison

from ..exports import PROMPTS, save_adapter
from ..tiny import save_tiny_llama


QUESTION = "Is it cold, and does it <|im_end|> rain?"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_tokenizer):
    """A base model and two adapters on it, the second with a dot in its name."""
    folder = tmp_path_factory.mktemp("comparison")
    base = save_tiny_llama(folder / "base", tiny_tokenizer, tied=False)
    return [save_adapter(base, folder / "keeper", k=1), save_adapter(base, folder / "seller.v2", k=3)]


def last(steps):
    return list(steps)[-1]


def ids_of(turn):
    return {form: answer.ids for form, answer in turn.answers.items()}


def test_each_adapter_answers_as_it_does_alone(folders):
    comparison = PromptComparison(folders, PROMPTS)
    assert comparison.names == ["keeper", "seller.v2"] and comparison.forms == ("full", "be", "no_prompt")
    for name, folder, prompt in [*zip(comparison.names, folders, PROMPTS)] * 2:
        turn = last(comparison.answers(name, QUESTION, 6))
        answers, kl = turn.answers, turn.kl
        model, tokenizer = load_adapter(folder)
        renderer = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer, prompt)
        for form in comparison.forms:
            ids = torch.tensor([getattr(renderer, form)(QUESTION)])
            expected = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
            )
            assert answers[form].input_tokens == turn.inputs[form] == ids.shape[1]
            assert answers[form].ids == expected[0, ids.shape[1] :].tolist()
        assert (
            answers["full"].kv_bytes / answers["full"].input_tokens
            == answers["be"].kv_bytes / answers["be"].input_tokens
        )
        scores, _ = evaluate_fidelity(model, tokenizer, prompt, [QUESTION], max_answer_length=6)
        assert kl["full"] == 0
        for form in ("be", "no_prompt"):
            assert kl[form] == pytest.approx(scores["kl"][form], rel=0.01)


def test_the_forms_come_one_after_the_other(folders):
    seen = []
    for turn in PromptComparison(folders[:1], PROMPTS[:1]).answers("keeper", QUESTION, 3):
        # A form has no answer while it is read, and each has one once all are compared
        assert (list(turn.answers.values())[-1] is None) is (turn.step == "reads")
        assert bool(turn.kl) is (turn.step == "done")
        seen.append((turn.step, len(turn.answers)))
    steps = [
        ("reads", 1),
        ("writes", 1),
        ("reads", 2),
        ("writes", 2),
        ("reads", 3),
        ("writes", 3),
        ("compares", 3),
        ("done", 3),
    ]
    assert list(dict.fromkeys(seen)) == steps


def test_an_answer_that_reached_the_longest_length_is_cut(folders):
    comparison = PromptComparison(folders[:1], PROMPTS[:1])
    whole = ids_of(last(comparison.answers("keeper", QUESTION, 6)))
    # The same answers, of which two end with what is now the end of a turn
    config = comparison.model.get_base_model().generation_config
    ends = {form: ids[3] for form, ids in whole.items() if form != "be" and ids[3] not in whole["be"]}
    config.eos_token_id = comparison.model.generation_config.eos_token_id = [config.eos_token_id, *ends.values()]
    turn = last(comparison.answers("keeper", QUESTION, 6))
    assert "be" in turn.cut and turn.answers["be"].ids == whole["be"]
    for form, answer in turn.answers.items():
        assert (form in turn.cut) is (answer.ids[-1] not in config.eos_token_id)


def test_each_form_remembers_its_own_answers(folders):
    comparison = PromptComparison(folders, PROMPTS)
    first = last(comparison.answers("seller.v2", "Is it cold?", 4))
    second = last(comparison.answers("seller.v2", QUESTION, 4, [first]))
    third = last(comparison.answers("seller.v2", "Why?", 4, [first, second]))
    renderer = comparison.renderers["seller.v2"]
    for form in comparison.forms:
        dialogue = [*first.messages(form), *second.messages(form), {"role": "user", "content": "Why?"}]
        assert [message["content"] for message in dialogue[::2]] == ["Is it cold?", QUESTION, "Why?"]
        assert third.inputs[form] == len(getattr(renderer, form)(dialogue)) and not third.forgotten[form]
    # The KL compares the forms after one and the same conversation: the full prompt's
    dialogue = [*first.messages("full"), *second.messages("full"), {"role": "user", "content": "Why?"}]
    model, tokenizer = load_adapter(folders[1])
    scores, _ = evaluate_fidelity(model, tokenizer, PROMPTS[1], [dialogue], max_answer_length=4)
    assert third.kl["full"] == 0
    for form in ("be", "no_prompt"):
        assert third.kl[form] == pytest.approx(scores["kl"][form], rel=0.01)


def test_what_does_not_fit_is_forgotten(folders):
    comparison = PromptComparison(folders[:1], PROMPTS[:1])
    long = last(comparison.answers("keeper", "a " * 400, 4))
    turn = last(comparison.answers("keeper", "b " * 200, 4, [long]))
    assert turn.forgotten == dict.fromkeys(comparison.forms, 1)
    assert turn.inputs == {form: len(ids) for form, ids in comparison.rendered("keeper", "b " * 200).items()}


def test_a_form_without_an_answer_does_not_remember_the_question(folders):
    comparison = PromptComparison(folders[:1], PROMPTS[:1])
    steps = comparison.answers("keeper", QUESTION, 4)
    turn = next(turn for turn in steps if turn.step == "writes")
    steps.close()
    assert len(turn.messages("full")) == 2 and turn.messages("be") == turn.messages("no_prompt") == []


def test_without_the_prompt(folders):
    comparison = PromptComparison(folders)
    assert comparison.forms == ("be", "no_prompt")
    turn = last(comparison.answers("seller.v2", QUESTION, 2))
    assert set(turn.answers) == {"be", "no_prompt"} and turn.kl == {} and turn.step == "done"


def test_a_second_request_waits_for_the_first(folders):
    comparison = PromptComparison(folders, PROMPTS)
    first = comparison.answers("keeper", QUESTION, 4)
    next(first)
    done = []
    second = threading.Thread(target=lambda: done.append(last(comparison.answers("seller.v2", QUESTION, 4))))
    second.start()
    next(first)
    assert not done and comparison.model.active_adapter == "0"
    assert next(comparison.answers("seller.v2", QUESTION, 4)).step == "waits"
    first.close()
    second.join(timeout=60)
    turn = last(comparison.answers("seller.v2", QUESTION, 4))
    assert ids_of(done[0]) == ids_of(turn)
    assert done[0].kl == pytest.approx(turn.kl)


def test_names(folders, tmp_path):
    (tmp_path / "keeper").symlink_to(folders[0])
    comparison = PromptComparison([folders[0], tmp_path / "keeper"])
    assert comparison.names == [str(folders[0]), str(tmp_path / "keeper")]


def test_what_is_refused(folders):
    with pytest.raises(ValueError, match="2 adapters and 1 prompts"):
        PromptComparison(folders, PROMPTS[:1])
    with pytest.raises(ValueError, match="given twice"):
        PromptComparison([folders[0], folders[0]])
    comparison = PromptComparison(folders, PROMPTS)
    for question, length, message in ((" \n", 4, "question is empty"), ("rain " * 700, 4, "context is 512")):
        with pytest.raises(ValueError, match=message):
            next(comparison.answers("keeper", question, length))
    assert last(comparison.answers("keeper", QUESTION, 2)).kl["full"] == 0
