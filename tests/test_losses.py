"""The chunked losses against the plain formulas, in float64, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from peft_be.losses import OutputHead, cross_entropy, divergence


SIZES = {
    "vocab_size": 211,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gemma2-softcap": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=3.0)),
    "granite-scaled": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=7.0)),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    model = MODELS[request.param]().eval().requires_grad_(False)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    return model


def hidden_states(n=37, d=24, requires_grad=False):
    return torch.randn(n, d, requires_grad=requires_grad)


def plain_divergence(student, teacher, temperature, beta):
    log_s = F.log_softmax(student / temperature, -1)
    log_t = F.log_softmax(teacher / temperature, -1)
    kl = lambda p, q: (p.exp() * (p - q)).sum(-1)  # noqa: E731
    if beta == 0:
        return kl(log_t, log_s)
    if beta == 1:
        return kl(log_s, log_t)
    log_m = torch.log((1 - beta) * log_s.exp() + beta * log_t.exp())
    return beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)


def test_logits_are_the_models_own(model):
    ids = torch.randint(5, 200, (2, 9))
    out = model(input_ids=ids, output_hidden_states=True)
    head = OutputHead(model)
    torch.testing.assert_close(head.logits(out.hidden_states[-1].flatten(0, 1)), out.logits.flatten(0, 1))


@pytest.mark.parametrize("chunk_size", [1, 8, 37, 100])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_divergence_equals_the_plain_formula(model, beta, temperature, chunk_size):
    head = OutputHead(model, chunk_size)
    student, teacher, weights = hidden_states(requires_grad=True), hidden_states(), torch.rand(37)
    losses = divergence(student, teacher, head, temperature, beta)
    (losses * weights).sum().backward()

    exact = student.detach().double().requires_grad_()
    double = OutputHead(model.double(), chunk_size)
    logits = lambda h: double.finish(F.linear(h, double.weight, double.bias))  # noqa: E731
    reference = plain_divergence(logits(exact), logits(teacher.double()), temperature, beta)
    (reference * weights.double()).sum().backward()
    torch.testing.assert_close(losses.double(), reference, atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(student.grad.double(), exact.grad, atol=2e-6, rtol=2e-4)


@pytest.mark.parametrize("chunk_size", [1, 8, 100])
def test_cross_entropy_equals_the_plain_formula(model, chunk_size):
    head = OutputHead(model, chunk_size)
    hidden, labels = hidden_states(requires_grad=True), torch.randint(0, 211, (37,))
    losses = cross_entropy(hidden, labels, head)
    losses.mean().backward()

    exact = hidden.detach().double().requires_grad_()
    double = OutputHead(model.double(), chunk_size)
    reference = F.cross_entropy(double.finish(F.linear(exact, double.weight)), labels, reduction="none")
    reference.mean().backward()
    torch.testing.assert_close(losses.double(), reference, atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(hidden.grad.double(), exact.grad, atol=2e-7, rtol=2e-4)


def test_equal_states_have_no_divergence_and_no_gradient(model):
    hidden = hidden_states(requires_grad=True)
    losses = divergence(hidden, hidden.detach(), OutputHead(model), 2.0)
    losses.sum().backward()
    assert losses.abs().max() < 1e-6
    assert hidden.grad.abs().max() < 1e-6


def test_jsd_meets_its_definition_in_the_middle(model):
    """The generalised JSD is symmetric at beta = 0.5 and below log 2."""
    head = OutputHead(model)
    a, b = hidden_states(), hidden_states()
    there, back = divergence(a, b, head, 1.0, 0.5), divergence(b, a, head, 1.0, 0.5)
    torch.testing.assert_close(there, back)
    assert there.max() < torch.log(torch.tensor(2.0))
