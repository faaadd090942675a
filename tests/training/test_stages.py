"""The three stages on a tiny model: what learns, what stays, and that the equations are what is computed."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import get_peft_model
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from peft_be import (
    AEConfig,
    AETrainer,
    BEDistillConfig,
    BEDistillTrainer,
    BETokenConfig,
    PromptJob,
    PromptRenderer,
    compress_prompt,
    compress_prompts,
    load_model,
)
from peft_be.training.budget import steps_in_time
from peft_be.training.init import CALIBRATION_QUERY, initial_rows
from peft_be.training.many_prompts import ManyPromptsTrainer

from ..stages import FAST, PROMPT, QUERIES, peft_model, trainer
from ..tiny import save_tiny_llama


def rows_of(model):
    return [p for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("kd_weight", [0.0, 0.9, 1.0])
def test_only_the_be_rows_learn(tiny_model, tiny_tokenizer, tmp_path, kd_weight):
    model = peft_model(tiny_model, k=2)
    run = trainer(model, tiny_tokenizer, tmp_path, kd_weight=kd_weight)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run.train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"base_model.model.model.embed_tokens.be_token_embedding.default.weight"}


def test_stage_0_trains_the_ae_row_alone(tiny_model, tiny_tokenizer, tmp_path):
    texts = [
        "The ship sails over the calm sea in the morning light, and nobody speaks. " * 2 + str(i) for i in range(6)
    ]
    args = AEConfig(str(tmp_path), max_steps=3, min_passage_length=8, max_passage_length=16, save_strategy="no")
    run = AETrainer(tiny_model, args, Dataset.from_dict({"text": texts}), processing_class=tiny_tokenizer)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    changed = {name for name, p in run.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"base_model.model.model.embed_tokens.be_token_ae_embedding.default.weight"}
    # Eq. 1: the text, [AE], and the text again as what is to be predicted
    row = run.train_dataset[0]
    n = len(row["input_ids"]) // 2
    assert row["input_ids"][n] == run.model.peft_config["default"].ae_token_id
    assert row["input_ids"][:n] == row["input_ids"][n + 1 :] == row["labels"][n + 1 :]
    assert set(row["labels"][: n + 1]) == {-100}


@pytest.mark.parametrize("settings", [{}, {"scale_by_temperature_squared": True}, {"kd_weight": 0.3}, {"beta": 1.0}])
def test_loss_is_eq_4(tiny_model, tiny_tokenizer, tmp_path, settings):
    """One batch, with logits built in full, from the model's own forward passes with and without P."""
    model = peft_model(tiny_model)
    run = trainer(model, tiny_tokenizer, tmp_path, **{"kd_weight": 0.9, **settings})
    rows = [run.train_dataset[i] for i in range(3)]
    run.model.eval()
    loss = run.compute_loss(model, run._prepare_inputs(run.data_collator(rows)))

    total, count = torch.zeros(()), 0
    for i, row in enumerate(rows):
        answer = [token for token, label in zip(row["input_ids"], row["labels"]) if label != -100]
        logits = []
        for prompt in (run.renderers["default"].full(QUERIES[i]), run.renderers["default"].be(QUERIES[i])):
            out = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            logits.append(F.log_softmax(out / run.args.temperature, -1))
        teacher, student = logits if run.args.beta == 0 else logits[::-1]
        total = total + (teacher.exp() * (teacher - student)).sum()
        count += len(answer)
    kd = total / count * (run.args.temperature**2 if run.args.scale_by_temperature_squared else 1)
    target = torch.tensor(run.renderers["default"].prompt_ids)
    out = model(input_ids=torch.tensor([[3, 15, *target.tolist()]])).logits[0, 1:-1]
    reconstruction = F.cross_entropy(out, target)
    expected = run.args.kd_weight * kd + (1 - run.args.kd_weight) * reconstruction
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    # The same gradient, too
    ours, theirs = (torch.autograd.grad(x, rows_of(model))[0] for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-3)


def test_the_first_reconstructed_token_counts(tiny_model, tiny_tokenizer, tmp_path):
    run = trainer(peft_model(tiny_model), tiny_tokenizer, tmp_path, kd_weight=0.0)
    inputs = run._reconstruction["default"]
    labels = inputs["labels"][0].tolist()
    assert inputs["input_ids"][0, :2].tolist() == [3, 15]
    assert labels[:2] == [-100, -100] and labels[2:] == run.renderers["default"].prompt_ids


def test_reconstruction_interval_keeps_the_mean_gradient(tiny_model, tiny_tokenizer, tmp_path):
    run = trainer(peft_model(tiny_model), tiny_tokenizer, tmp_path, kd_weight=0.5, reconstruction_interval=4)
    batch = run._prepare_inputs(run.data_collator([run.train_dataset[0]]))
    losses = []
    for step in range(4):
        run.state.global_step = step
        losses.append(run.compute_loss(run.model, batch).item())
    every = trainer(peft_model(run.model.unload()), tiny_tokenizer, tmp_path / "b", kd_weight=0.5)
    assert sum(losses) / 4 == pytest.approx(every.compute_loss(every.model, batch).item(), rel=1e-5)
    assert len(set(losses[1:])) == 1 and losses[0] > losses[1]


def test_kd_cap_and_gold_answers(tiny_model, tiny_tokenizer, tmp_path):
    run = trainer(peft_model(tiny_model), tiny_tokenizer, tmp_path, kd_weight=1.0, max_kd_tokens=2)
    assert all(sum(label != -100 for label in row["labels"]) == 2 for row in run.train_dataset)
    gold = Dataset.from_dict({"query": QUERIES[:2], "answer": ["I see the sea.", "Yes <|im_end|> it is."]})
    args = BEDistillConfig(str(tmp_path / "gold"), **{**FAST, "max_answer_length": 32}, kd_weight=1.0)
    run = BEDistillTrainer(peft_model(run.model.unload()), args, PROMPT, gold, gold, processing_class=tiny_tokenizer)
    answers = [[t for t, label in zip(r["input_ids"], r["labels"]) if label != -100] for r in run.train_dataset]
    assert tiny_tokenizer.decode(answers[0]) == "I see the sea.<|im_end|>"
    # A gold answer cannot end its own turn: only the last token is the real one
    assert answers[1].count(2) == 1 and answers[1][-1] == 2


def test_training_reads_what_evaluation_and_chat_will(tiny_model, tiny_tokenizer, tmp_path):
    """The ids in front of each answer are those of a renderer that knows the finished adapter alone."""
    run = trainer(peft_model(tiny_model, k=2), tiny_tokenizer, tmp_path, kd_weight=1.0)
    later = PromptRenderer.for_adapter(run.model.peft_config["default"], tiny_tokenizer)
    for query, row in zip(QUERIES, run.train_dataset):
        assert row["input_ids"][: row["labels"].count(-100)] == later.be(query)


def test_rows_start_as_long_as_the_hidden_states(tiny_model, tiny_tokenizer, tmp_path):
    short = trainer(peft_model(tiny_model, ae=False), tiny_tokenizer, tmp_path, kd_weight=1.0, init_scale=1.0)
    rows = short.model.base_model.get_rows("default")
    base = short.model.unload()
    run = trainer(peft_model(base, ae=False), tiny_tokenizer, tmp_path / "b", kd_weight=1.0)
    growth = run.model.base_model.get_rows("default").norm() / rows.norm()
    ids = torch.tensor([run.renderers["default"].no_prompt(CALIBRATION_QUERY)])
    states = base(ids, output_hidden_states=True).hidden_states
    first, *rest = [state[0, 1:].norm(dim=-1) for state in states]
    torch.testing.assert_close(growth, torch.cat(rest).median() / first.median())
    # A learning rate means the same for both
    rates = [r.create_optimizer().param_groups[0]["lr"] for r in (short, run)]
    assert rates[1] / rates[0] == pytest.approx(growth.item(), rel=1e-4)


def test_several_rows_start_from_the_first_tokens_of_their_prompt(tiny_tokenizer):
    table = torch.randn(49152, 8, generator=torch.Generator().manual_seed(0))
    ids = [2, 7, 1, 8, 2]
    you = table[tiny_tokenizer("You")["input_ids"]].norm()

    def start(num_rows, init="auto", text=None):
        return initial_rows(init, num_rows, table, tiny_tokenizer, ids, text)

    # By default, one row starts from a neutral word
    torch.testing.assert_close(start(1), table[tiny_tokenizer("You")["input_ids"]])
    torch.testing.assert_close(start(7).norm(dim=-1), you.expand(7))
    torch.testing.assert_close(start(1, "prompt"), table[ids[:1]] / table[ids[0]].norm() * you)
    similarity = torch.cosine_similarity(start(7)[:, None], table[[*ids, *ids[:2]]][None], dim=-1)
    assert (similarity.diagonal() > 0.9).all()  # a short prompt begins again
    assert start(7).unique(dim=0).shape[0] == 7
    words = tiny_tokenizer("Aye, captain")["input_ids"][:2]
    similarity = torch.cosine_similarity(start(2, "text", "Aye, captain"), table[words], dim=-1)
    assert (similarity > 0.9).all()


def test_the_learning_rate_is_what_a_step_adds_in_units_of_the_start(tiny_model, tiny_tokenizer, tmp_path):
    steady = {"lr_scheduler_type": "constant", "warmup_steps": 0, "max_steps": 1}
    for optim, rate in (("ggt", 0.05), ("adamw_torch", 0.2)):
        model = peft_model(tiny_model, ae=False)
        folder = tmp_path / optim
        run = trainer(model, tiny_tokenizer, folder, kd_weight=1.0, optim=optim, **steady)
        start = model.base_model.get_rows("default")
        run.train()
        moved = model.base_model.get_rows("default") - start
        assert moved.norm().item() == pytest.approx(rate * start.norm().item(), rel=1e-3)
        model.unload()


def test_training_does_not_depend_on_the_scale_of_the_embedding_table(tiny_model, tiny_tokenizer, tmp_path):
    """Gemma's table is small and its embedding multiplies: the same model, written that way, learns the same row."""
    run = trainer(peft_model(tiny_model, ae=False), tiny_tokenizer, tmp_path / "a", kd_weight=1.0)
    run.train()
    expected = run.model.base_model.get_rows("default")
    base = run.model.unload()
    table = base.get_input_embeddings().weight.data
    scaled = Gemma3TextScaledWordEmbedding(*table.shape, padding_idx=None, embed_scale=8.0)
    scaled.weight.data = table / 8
    base.set_input_embeddings(scaled)
    run = trainer(peft_model(base, ae=False), tiny_tokenizer, tmp_path / "b", kd_weight=1.0)
    run.train()
    torch.testing.assert_close(8 * run.model.base_model.get_rows("default"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kd_weight", "interval"), [(0.0, 1), (0.5, 1), (0.5, 4), (1.0, 1)])
def test_a_time_budget_is_measured_without_a_trace(tiny_model, tiny_tokenizer, tmp_path, kd_weight, interval):
    settings = {"kd_weight": kd_weight, "reconstruction_interval": interval}
    run = trainer(peft_model(tiny_model), tiny_tokenizer, tmp_path, **settings)
    rows, random_state = run.model.base_model.get_rows("default"), torch.get_rng_state()
    assert steps_in_time(run, seconds=1000.0) > 100
    assert steps_in_time(run, seconds=0.0) == 1  # at least one
    assert torch.equal(run.model.base_model.get_rows("default"), rows)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in run.model.parameters())
    assert run.state.global_step == 0 and not run.state.log_history and not run._metrics["train"]


def test_gradient_accumulation_changes_nothing(tiny_model, tiny_tokenizer, tmp_path):
    rows = []
    for number, (size, accumulation) in enumerate(((4, 1), (1, 4))):
        model = peft_model(tiny_model, ae=False)
        run = trainer(
            model,
            tiny_tokenizer,
            tmp_path / str(number),
            kd_weight=1.0,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            max_steps=1,
            max_kd_tokens=1,  # one token an answer: the mean over a batch is the mean of the answers' means
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
        )
        run.train()
        rows.append(model.base_model.get_rows("default"))
        tiny_model = model.unload()
    torch.testing.assert_close(rows[0], rows[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kd_weight": 1.5}, "between 0 and 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"beta": -0.1}, "reverse KL"),
        ({"init": "best"}, "Unknown init"),
        ({"reconstruction_interval": 0}, "at least 1"),
        ({"max_kd_tokens": 0}, "at least 1"),
    ],
)
def test_settings_out_of_range(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        BEDistillConfig(str(tmp_path), **settings)


def test_a_prompt_longer_than_the_context_is_refused(tiny_model, tiny_tokenizer, tmp_path):
    queries = Dataset.from_dict({"query": QUERIES})
    args = BEDistillConfig(str(tmp_path), kd_weight=1.0, **FAST)
    with pytest.raises(ValueError, match="context is 512"):
        BEDistillTrainer(tiny_model, args, "sea " * 600, queries, queries, processing_class=tiny_tokenizer)


def test_reconstruction_without_an_ae_row_is_refused(tiny_model, tiny_tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"needs a trained \[AE\] row"):
        trainer(peft_model(tiny_model, ae=False), tiny_tokenizer, tmp_path, kd_weight=0.9)


def test_a_broken_loss_stops_the_run(tiny_model, tiny_tokenizer, tmp_path):
    run = trainer(peft_model(tiny_model, ae=False), tiny_tokenizer, tmp_path, kd_weight=1.0)
    run.model.base_model.set_rows("default", torch.full((1, 32), float("nan")))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        run.train()


def test_checkpoints_hold_the_rows_only(tiny_model, tiny_tokenizer, tmp_path):
    run = trainer(peft_model(tiny_model), tiny_tokenizer, tmp_path)
    run.train()
    names = {path.name for path in (tmp_path / "out" / "checkpoint-3").iterdir()}
    assert "adapter_model.safetensors" in names and "tokenizer.json" not in names
    assert (tmp_path / "out" / "checkpoint-3" / "adapter_model.safetensors").stat().st_size < 2000


def test_in_16_bits_neither_kernel_nor_checkpointing_change_the_gradient(
    tiny_model, tiny_tokenizer, tmp_path, monkeypatch
):
    """Short rows on CPU take another attention kernel than long ones, and than checkpointed ones."""
    run = trainer(peft_model(tiny_model.bfloat16(), ae=False), tiny_tokenizer, tmp_path, kd_weight=1.0)
    run.model.train()
    inputs = run._prepare_inputs(run.data_collator(list(run.train_dataset)[:3]))

    def gradient():
        run.model.zero_grad()
        run.compute_loss(run.model, inputs).backward()
        return rows_of(run.model)[0].grad.clone()

    plain = gradient()
    monkeypatch.setattr("peft_be.training.row_trainer.MAX_PLAIN_SCORES", 0)
    fused = gradient()
    monkeypatch.undo()
    run.model.gradient_checkpointing_enable({"use_reentrant": False})
    close = {"rtol": 0.0, "atol": 0.05 * plain.abs().max().item()}
    torch.testing.assert_close(fused, plain, **close)
    torch.testing.assert_close(gradient(), plain, **close)


def test_without_padding_loss_and_gradient_are_the_same(tiny_model, tiny_tokenizer, tmp_path):
    """Rows joined to one sequence, as FlashAttention takes them; other kernels are given the mask that separates them."""
    run = trainer(peft_model(tiny_model, ae=False), tiny_tokenizer, tmp_path, kd_weight=1.0)
    assert not run._collator.padding_free
    rows = list(run.train_dataset)[:3]
    assert len({row["length"] for row in rows}) > 1
    results = []
    for padding_free in (False, True):
        run._collator.padding_free = padding_free
        inputs = run._prepare_inputs(run.data_collator(rows))
        assert (inputs["input_ids"].shape[0] == 1) == padding_free
        loss = run.compute_loss(run.model, inputs)
        loss.backward()
        results.append((loss.detach(), rows_of(run.model)[0].grad.clone()))
        run.model.zero_grad()
    # Float32 log-probabilities of about 10 leave 1e-7 of noise in a KL
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-8)


def test_gradient_checkpointing_changes_memory_alone(tiny_model, tiny_tokenizer, tmp_path):
    rows = []
    base = tiny_model
    for checkpointing in (False, True):
        model = peft_model(base, ae=False)
        run = trainer(
            model,
            tiny_tokenizer,
            tmp_path / str(checkpointing),
            kd_weight=1.0,
            gradient_checkpointing=checkpointing,
        )
        run.train()
        assert run.model.get_base_model().is_gradient_checkpointing == checkpointing
        rows.append(model.base_model.get_rows("default"))
        base = model.unload()
    torch.testing.assert_close(rows[0], rows[1])


def test_an_unwrapped_model_gets_a_trained_ae_row_or_none(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="none is shipped"):
        trainer(tiny_model, tiny_tokenizer, tmp_path, kd_weight=0.5)
    vocab_size = tiny_model.get_input_embeddings().num_embeddings
    shipped = get_peft_model(tiny_model, BETokenConfig.for_tokenizer(tiny_tokenizer, vocab_size, 0, True))
    shipped.save_pretrained(tmp_path / "ae")
    expected = shipped.base_model.get_ae_row("default")
    base = shipped.unload()
    monkeypatch.setattr("peft_be.adapters.ae_row.shipped_ae", lambda model: tmp_path / "ae")
    run = trainer(base, tiny_tokenizer, tmp_path, kd_weight=0.5)
    assert run.model.base_model.get_ae_row("default").equal(expected)
    assert trainer(run.model.unload(), tiny_tokenizer, tmp_path, kd_weight=1.0)._reconstruction == {}


def test_texts_and_dialogues_among_the_queries(tiny_model, tiny_tokenizer, tmp_path):
    dialogue = [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "The keeper."},
        {"role": "user", "content": "Of what?"},
    ]
    queries = [*QUERIES, dialogue, [{"role": "user", "content": "Are you alone?"}]]
    args = {"model": tiny_model, "tokenizer": tiny_tokenizer, **FAST}
    result = compress_prompt(PROMPT, queries, tmp_path / "one", **args)
    assert result.report["num_queries"] == {"train": 6, "validation": 1}
    jobs = [PromptJob("texts", PROMPT, QUERIES), PromptJob("both", PROMPT, queries)]
    del args["save_steps"]
    args["model"] = result.model.unload()
    assert [r.error for r in compress_prompts(jobs, tmp_path / "many", **args)] == [None, None]


def test_nothing_is_uploaded_that_names_a_local_base(tiny_tokenizer, tmp_path):
    model, _ = load_model(str(save_tiny_llama(tmp_path / "base", tiny_tokenizer)))
    with pytest.raises(ValueError, match="nobody else has"):
        trainer(model, tiny_tokenizer, tmp_path, kd_weight=1.0, push_to_hub=True, hub_model_id="me/keeper")


def test_an_adapter_by_its_configuration(tiny_model, tiny_tokenizer, tmp_path):
    config = BETokenConfig(task_type="CAUSAL_LM", num_be_tokens=3, slot="prefix", be_token_ids=[5, 6, 7])
    queries = Dataset.from_dict({"query": QUERIES})
    arguments = {"prompt": PROMPT, "train_dataset": queries, "eval_dataset": queries.select([0])}
    args = BEDistillConfig(str(tmp_path), **FAST)
    # Without a tokenizer, that of the model's name is loaded
    tiny_model.name_or_path = tiny_tokenizer.name_or_path
    run = BEDistillTrainer(tiny_model, args, **arguments, peft_config=config)
    assert run.model.peft_config["default"].be_token_ids == [5, 6, 7]
    assert run.train_dataset[0]["input_ids"].count(5) == 1 and run.processing_class is not None
    with pytest.raises(ValueError, match="has an adapter already"):
        BEDistillTrainer(run.model, args, **arguments, peft_config=config)
    run.model.get_base_model().name_or_path = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="pass it as processing_class"):
        BEDistillTrainer(run.model.unload(), args, **arguments)


def test_one_prompt_and_several_have_a_trainer_each(tiny_model, tiny_tokenizer, tmp_path):
    args = BEDistillConfig(str(tmp_path), **FAST)
    for trainer_class, prompt in ((BEDistillTrainer, {"keeper": PROMPT}), (ManyPromptsTrainer, PROMPT)):
        with pytest.raises(ValueError, match="ManyPromptsTrainer"):
            trainer_class(tiny_model, args, prompt, processing_class=tiny_tokenizer)
