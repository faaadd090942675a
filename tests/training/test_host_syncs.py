"""
What a training step would do on a GPU, found without one. Above all where it would wait: whatever asks for the values of a
tensor is noted.

On a GPU, such a question stops Python until all that was asked of the device is done, and leaves the device without work
until Python has caught up. `tests/gpu` asks CUDA itself.
"""

import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from peft_be import AEConfig, AETrainer, BEDistillConfig, BEDistillTrainer
from peft_be.adapters.create import add_adapter
from peft_be.losses import OutputHead
from peft_be.teacher import SharedPrefix
from peft_be.teacher.answers import answer_states
from peft_be.training.many_prompts import ManyPromptsTrainer


# Operators that need values on the host to know what comes next, and functions of Python that copy there, or block while
# they copy from there
WAITING_OPERATORS = {
    "aten._linalg_eigh.default",
    "aten._local_scalar_dense.default",
    "aten._unique2.default",
    "aten.equal.default",
    "aten.is_nonzero.default",
    "aten.masked_select.default",
    "aten.nonzero.default",
    "aten.repeat_interleave.Tensor",
    "aten.unique_consecutive.default",
}
WAITING_FUNCTIONS = {"tolist", "cpu", "numpy", "tensor", "as_tensor", "from_numpy"}
PROMPTS = {
    "keeper": "You are a lighthouse keeper. You answer in short sentences, and you never leave the island.",
    "cook": "You cook, and you speak of nothing but soup, whatever somebody asks.",
}
QUERIES = ["Who are you?", "What do you see?", "Is it cold?", "Where is the boat?"]
STEPS = 6


def caller() -> str:
    """The nearest function that is none of torch's, or of this file's."""
    torch_files = Path(torch.__file__).parent
    frames = [frame for frame in traceback.extract_stack(limit=40) if Path(frame.filename) != Path(__file__)]
    return next(frame.name for frame in reversed(frames) if torch_files not in Path(frame.filename).parents)


class _Functions(TorchFunctionMode):
    def __init__(self, found: Counter):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in WAITING_FUNCTIONS:
            self.found[caller()] += 1
        return function(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, found: Counter):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        by_mask = operator.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if str(operator) in WAITING_OPERATORS or by_mask:
            self.found[caller()] += 1
        return operator(*args, **(kwargs or {}))


class WatchSteps(TrainerCallback):
    """Notes who asks for values between the beginning of a step and its end, for each step by itself."""

    def __init__(self):
        self.steps: list[Counter] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps.append(Counter())
        self.modes = [_Functions(self.steps[-1]), _Operators(self.steps[-1])]
        for mode in self.modes:
            mode.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        for mode in reversed(self.modes):
            mode.__exit__(None, None, None)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The embedding takes the path that does not look at ids."""
    for module in ("layer", "inputs"):
        monkeypatch.setattr(f"peft_be.tuner.{module}.at_hand", lambda ids: False)


def watched_steps(trainer) -> list[Counter]:
    watch = WatchSteps()
    # In front of the package's own callbacks, which may ask once a training is under way
    trainer.callback_handler.callbacks.insert(0, watch)
    trainer.train()
    assert len(watch.steps) == STEPS
    return watch.steps[2:]  # the first input is checked, and the first steps are asked whether rows move


@pytest.mark.parametrize(
    "changes, parts",
    [
        # Each is a forward, and one part of the loss
        ({"kd_weight": 1.0}, 1),
        ({"kd_weight": 0.9, "reconstruction_interval": 1}, 2),
        ({"kd_weight": 0.0}, 1),
        ({"kd_weight": 1.0, "hard_labels": True}, 1),
        ({"kd_weight": 1.0, "gradient_checkpointing": True}, 1),
    ],
    ids=["stage 2", "stages 1 and 2", "stage 1", "hard labels", "checkpointing"],
)
@pytest.mark.parametrize("prompts", [PROMPTS["keeper"], PROMPTS], ids=["one prompt", "several"])
def test_a_step_waits_for_its_loss_alone(tiny_model, tiny_tokenizer, tmp_path, as_on_a_gpu, changes, parts, prompts):
    k = len(prompts) if isinstance(prompts, dict) else 1
    ae_row = torch.linspace(-0.1, 0.1, 32)[None] if changes["kd_weight"] < 1 else None
    model = add_adapter(tiny_model, tiny_tokenizer, k, ae_row)
    names = [name for name in PROMPTS for _ in QUERIES] if k > 1 else None
    queries = {"query": QUERIES * k, **({"prompt_name": names} if names else {})}
    args = BEDistillConfig(
        str(tmp_path), max_steps=STEPS, eval_strategy="no", save_strategy="no", load_best_model_at_end=False,
        max_answer_length=5, logging_steps=100, **changes,
    )  # fmt: skip
    datasets = [Dataset.from_dict(queries) for _ in range(2)]
    trainer = ManyPromptsTrainer if k > 1 else BEDistillTrainer
    steps = watched_steps(trainer(model, args, prompts, *datasets, processing_class=tiny_tokenizer))
    # Not one for each prompt, but for the reconstruction, each of which has a forward of its own
    forwards = {0.0: k, 0.9: 1 + k, 1.0: 1}[changes["kd_weight"]]
    expected = {
        "_checked": parts,  # the loss, which is logged, and stops the training where it is no number
        "_step": 1,  # GGT, for torch's word that the eigenvalues were found
        "find_packed_sequence_indices": forwards,  # transformers, as in any training without an attention mask
    }
    assert steps == [Counter(expected)] * len(steps)


def test_a_step_of_stage_0_waits_in_transformers_alone(tiny_model, tiny_tokenizer, tmp_path, as_on_a_gpu):
    texts = [f"The ship sails over the calm sea in the morning light, and nobody speaks, day {i}." for i in range(8)]
    args = AEConfig(
        str(tmp_path), max_steps=STEPS, min_passage_length=8, max_passage_length=16, save_strategy="no",
        logging_steps=100, optim="adamw_torch_fused",
    )  # fmt: skip
    trainer = AETrainer(tiny_model, args, Dataset.from_dict({"text": texts}), processing_class=tiny_tokenizer)
    assert watched_steps(trainer) == [Counter({"find_packed_sequence_indices": 1})] * (STEPS - 2)


def test_what_waits_is_found():
    found = Counter()
    x, ids = torch.ones(3, requires_grad=True), torch.tensor([0, 2])
    with _Functions(found), _Operators(found):
        (x[ids] * 2).sum().backward()
        assert not found
        asked = [lambda: x[x > 0], lambda: x.sum().item(), lambda: bool((x > 0).any()), lambda: torch.equal(x, x)]
        asked += [x.tolist, x.detach().cpu, x.detach().numpy, lambda: torch.tensor([0], device=x.device), ids.unique]
        for number, ask in enumerate(asked, start=1):
            ask()
            assert found.total() >= number


def test_all_that_a_step_makes_is_where_the_model_is(tiny_model, tiny_tokenizer, tmp_path, as_on_a_gpu, monkeypatch):
    """On the device `meta`, which holds no values, an operator still refuses tensors of two devices."""
    meta = torch.device("meta")
    model = add_adapter(tiny_model, tiny_tokenizer, 2, torch.linspace(-0.1, 0.1, 32)[None])
    queries = {"query": QUERIES * 2, "prompt_name": [name for name in PROMPTS for _ in QUERIES]}
    args = BEDistillConfig(str(tmp_path), max_steps=STEPS, max_answer_length=5, kd_weight=0.9)
    datasets = [Dataset.from_dict(queries) for _ in range(2)]
    trainer = ManyPromptsTrainer(model, args, PROMPTS, *datasets, processing_class=tiny_tokenizer)
    batch = trainer.data_collator(list(trainer.train_dataset))

    model._apply(lambda tensor: tensor.to(meta))
    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {meta}
    monkeypatch.setattr(type(args), "device", property(lambda self: meta))
    trainer._head = OutputHead(model.get_base_model())
    trainer._reconstruction = {name: moved(inputs, meta) for name, inputs in trainer._reconstruction.items()}
    # Three that ask for values
    monkeypatch.setattr(trainer, "_checked", lambda what, losses: losses)
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)
    model.get_input_embeddings().expects_be = False

    trainer.compute_loss(model, moved(batch, meta)).backward()
    trainer._clip_grad_norm(model)
    trainer.create_optimizer().step()
    mixed = torch.tensor([[20, 21, 22], [23, 24, 25]], device=meta)
    assert model.eval()(input_ids=mixed, adapter_names=["default", "__base__"]).logits.device == meta
    assert trainer._kd_losses(model, moved(batch, meta), 1.0, 0.0).device == meta
    # A shared prefix, as the teacher reads answers after it
    base, prompts = model.get_base_model(), [[*range(20, 60), 70 + i] for i in range(2)]
    monkeypatch.setattr("peft_be.teacher.answers.check_finite", lambda states: None)
    answers = answer_states(base, prompts, [[1, 2], [3]], prefix=SharedPrefix(base, prompts[0][:40]))
    assert answers[0].hidden.device == meta


def moved(batch: dict, device: torch.device) -> dict:
    return {name: moved(part, device) if isinstance(part, dict) else part.to(device) for name, part in batch.items()}
