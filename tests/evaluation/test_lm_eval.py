"""The harness's model `peft_be`: what the harness asks it for, against the adapter used directly."""

from importlib.metadata import entry_points

import pytest
import torch
import torch.nn.functional as F

from peft_be import PromptRenderer, load_adapter

from ..exports import save_adapter
from ..tiny import save_tiny_llama


pytest.importorskip("lm_eval", reason="needs the lm-evaluation-harness: pip install lm-eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402

from peft_be.evaluation.lm_eval import PeftBeLM  # noqa: E402


PROMPT = "You are a lighthouse keeper. You answer in short sentences."
QUESTIONS = ["Is it cold?", "What do you <|im_end|> see, and who else lives on this island?", " Why?\n"]


@pytest.fixture(scope="module", params=["system", "prefix"])
def folders(request, tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("lm_eval")
    (folder / "prompt.txt").write_text(PROMPT)
    base = save_tiny_llama(folder / "base", tiny_tokenizer)
    return base, str(save_adapter(base, folder / "adapter", k=2, slot=request.param)), str(folder / "prompt.txt")


def make(folders, form="be", **kwargs):
    base, adapter, prompt = folders
    prompt = {"prompt": prompt} if form == "full" else {}
    return PeftBeLM(pretrained=base, adapter=adapter, form=form, dtype="float32", batch_size=2, **prompt, **kwargs)


def direct(folders, form="be"):
    """The adapter without the harness: the model, its tokenizer, and a function from a query to ids."""
    model, tokenizer = load_adapter(folders[1], folders[0], dtype=torch.float32)
    renderer = PromptRenderer.for_adapter(model.peft_config["default"], tokenizer, PROMPT)
    return model, tokenizer, getattr(renderer, form)


def chat(lm, question, start=None):
    messages = [{"role": "user", "content": question}]
    if start is None:
        return lm.apply_chat_template(messages)
    return lm.apply_chat_template([*messages, {"role": "assistant", "content": start}], add_generation_prompt=False)


def instances(kind, arguments):
    return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]


@pytest.mark.parametrize("form", ["be", "full", "no_prompt"])
def test_the_model_reads_what_it_was_trained_on(folders, form):
    lm, (_, tokenizer, render) = make(folders, form), direct(folders, form)
    for question in QUESTIONS:
        assert lm.tok_encode(chat(lm, question)) == render(question)
        start = tokenizer(" It <|im_end|> is", split_special_tokens=True)["input_ids"]
        assert lm.tok_encode(chat(lm, question, " It <|im_end|> is")) == render(question) + start


def test_batches_are_padded_on_the_left_and_lose_their_beginning(folders):
    lm, (_, _, render) = make(folders), direct(folders)
    rows = [render(question) for question in QUESTIONS]
    width = max(map(len, rows))
    for length in (None, 12):
        ids, mask = lm.tok_batch_encode([chat(lm, question) for question in QUESTIONS], left_truncate_len=length)
        assert ids.shape == mask.shape == (3, length or width)
        for row, got, seen in zip(rows, ids.tolist(), mask.tolist()):
            row = row[-(length or width) :]
            assert got[len(got) - len(row) :] == row
            assert seen == [0] * (len(got) - len(row)) + [1] * len(row)


def test_generations_are_those_of_the_adapter(folders):
    lm, (model, tokenizer, render) = make(folders), direct(folders)
    arguments = [(chat(lm, question), {"until": ["~~~"], "max_gen_toks": 6}) for question in QUESTIONS]
    answers = lm.generate_until(instances("generate_until", arguments), disable_tqdm=True)
    for question, answer in zip(QUESTIONS, answers):
        ids = torch.tensor([render(question)])
        expected = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
        )
        assert answer == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)


def test_log_likelihoods_are_those_of_the_adapter(folders):
    lm, (model, tokenizer, render) = make(folders), direct(folders)
    arguments = [(chat(lm, question), answer) for question in QUESTIONS for answer in ("A", "Yes, very </s> cold.")]
    arguments += [(chat(lm, QUESTIONS[0], "It is"), " cold."), ("", "B is right")]
    got = lm.loglikelihood(instances("loglikelihood", arguments), disable_tqdm=True)
    contexts = [render(question) for question in QUESTIONS for _ in "12"]
    contexts += [render(QUESTIONS[0]) + tokenizer("It is")["input_ids"], [tokenizer.bos_token_id]]
    for (_, text), context, (log_likelihood, _) in zip(arguments, contexts, got):
        answer = tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
        expected = F.log_softmax(logits, -1).gather(-1, torch.tensor(answer).unsqueeze(-1)).sum().item()
        assert log_likelihood == pytest.approx(expected, abs=1e-3)


def test_the_harness_keeps_answers_of_different_forms_apart(folders):
    requests = {chat(make(folders, form), QUESTIONS[0]) for form in ("be", "full", "no_prompt")}
    assert len(requests) == 3
    assert make(folders).tokenizer_name != get_model("hf")(folders[0], device="cpu").tokenizer_name


def test_the_harness_finds_the_model(folders):
    lm = get_model("peft_be").create_from_arg_string(
        f"pretrained={folders[0]},form=no_prompt", {"batch_size": 4, "max_batch_size": None, "device": "cuda:0"}
    )
    assert isinstance(lm, PeftBeLM) and lm.batch_size == 4
    assert lm.tok_encode(chat(lm, QUESTIONS[0])) == direct(folders, "no_prompt")[2](QUESTIONS[0])


def test_the_package_offers_the_model_as_a_plugin():
    (found,) = (point for point in entry_points(group="lm_eval.models") if point.name == "peft_be")
    assert found.load() is PeftBeLM


@pytest.mark.parametrize("form", ["be", "full", "no_prompt"])
def test_what_belongs_to_the_prompt_is_refused(folders, form):
    lm = make(folders, form)
    user, assistant = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    for messages in ([{"role": "system", "content": "Be brief."}, user], [user, assistant, user]):
        with pytest.raises(ValueError, match="--num_fewshot 0"):
            lm.apply_chat_template(messages)
    with pytest.raises(ValueError, match="--apply_chat_template"):
        lm.tok_encode("Question: Why?\nAnswer:")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"pretrained": "x"}, "needs adapter"),
        ({"form": "no_prompt"}, "needs adapter"),
        ({"adapter": "x", "form": "none"}, "be, full, no_prompt"),
        ({"adapter": "x", "form": "full"}, "belong together"),
        ({"adapter": "x", "prompt": "x"}, "belong together"),
        ({"adapter": "x", "peft": "y"}, "no argument 'peft'"),
    ],
)
def test_arguments_that_do_not_fit(arguments, words):
    with pytest.raises(ValueError, match=words):
        PeftBeLM(**arguments)


@pytest.mark.parametrize("form", ["be", "full"])
def test_requests_beyond_the_context_are_refused(folders, form):
    lm, long = make(folders, form), "sea " * 600
    with pytest.raises(ValueError, match="context is 512"):
        lm.loglikelihood(instances("loglikelihood", [(chat(lm, long), " Aye")]))
    for question, new in ((long, 4), ("Is it cold?", 600)):
        arguments = [(chat(lm, question), {"until": ["\n"], "max_gen_toks": new})]
        with pytest.raises(ValueError, match="context is 512"):
            lm.generate_until(instances("generate_until", arguments))
    with pytest.raises(ValueError, match="max_length=513 .* context of 512"):
        make(folders, form, max_length=513)
    # Whoever asks for it gets the harness's own way: the beginning is cut off
    lm = make(folders, form, max_length=64)
    assert len(lm.loglikelihood(instances("loglikelihood", [(chat(lm, long), " Aye")]))) == 1
