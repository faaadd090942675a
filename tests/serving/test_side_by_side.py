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


def test_each_adapter_answers_as_it_does_alone(folders):
    comparison = PromptComparison(folders, PROMPTS)
    assert comparison.names == ["keeper", "seller.v2"] and comparison.forms == ("full", "be", "no_prompt")
    for name, folder, prompt in [*zip(comparison.names, folders, PROMPTS)] * 2:
        answers, kl = last(comparison.answers(name, QUESTION, 6))
        model, tokenizer = load_adapter(folder)
        renderer = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer, prompt)
        for form in comparison.forms:
            ids = torch.tensor([getattr(renderer, form)(QUESTION)])
            expected = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
            )
            assert answers[form].input_tokens == ids.shape[1]
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
    steps = list(PromptComparison(folders[:1], PROMPTS[:1]).answers("keeper", QUESTION, 3))
    seen = [tuple(answers) for answers, _ in steps]
    assert list(dict.fromkeys(seen)) == [("full",), ("full", "be"), ("full", "be", "no_prompt")]
    assert [seen.index(s) for s in dict.fromkeys(seen)] == [i for i, (a, _) in enumerate(steps) if None in a.values()]
    assert [bool(kl) for _, kl in steps] == [False] * (len(steps) - 1) + [True]


def test_without_the_prompt(folders):
    comparison = PromptComparison(folders)
    assert comparison.forms == ("be", "no_prompt")
    answers, kl = last(comparison.answers("seller.v2", QUESTION, 2))
    assert set(answers) == {"be", "no_prompt"} and kl == {}


def test_a_second_request_waits_for_the_first(folders):
    comparison = PromptComparison(folders, PROMPTS)
    first = comparison.answers("keeper", QUESTION, 4)
    next(first)
    done = []
    second = threading.Thread(target=lambda: done.append(last(comparison.answers("seller.v2", QUESTION, 4))))
    second.start()
    next(first)
    assert not done and comparison.model.active_adapter == "0"
    assert next(comparison.answers("seller.v2", QUESTION, 4)) == ({}, {})
    first.close()
    second.join(timeout=60)
    answers, kl = last(comparison.answers("seller.v2", QUESTION, 4))
    assert {form: answer.ids for form, answer in done[0][0].items()} == {f: a.ids for f, a in answers.items()}
    assert done[0][1] == pytest.approx(kl)


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
    assert last(comparison.answers("keeper", QUESTION, 2))[1]["full"] == 0
