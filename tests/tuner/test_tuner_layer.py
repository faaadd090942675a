import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from peft_be.tuner import BETokenConfig, BETokenEmbedding

from .tuner_helpers import VOCAB_SIZE, make_model


V, D = 1000, 16


def make_layer(*ids, num_embeddings=V, dtype=torch.float32, **adapters):
    """A layer with the [BE] ids of the adapter "default", and of further adapters."""
    torch.manual_seed(0)
    layer = BETokenEmbedding(nn.Embedding(num_embeddings, D, dtype=dtype).requires_grad_(False), "default")
    for name, be_token_ids in {"default": list(ids), **adapters}.items():
        layer.update_layer(name, BETokenConfig(num_be_tokens=len(be_token_ids), be_token_ids=be_token_ids))
    return layer


@pytest.fixture(params=["index_put", "where"])
def path(request, monkeypatch):
    """Both ways in which rows are placed: the eager one of the CPU, and the one for compilation and other devices."""
    if request.param == "where":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return request.param


@pytest.mark.parametrize("ids", [[7], [3, V + 5], [V, V + 1, 2, 900]])
@pytest.mark.parametrize("shape", [(9,), (2, 9), (2, 3, 4), (0,), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_rows_and_ordinary_embeddings(path, ids, shape, dtype):
    layer = make_layer(*ids)
    x = torch.randint(0, V, shape, dtype=dtype)
    x[torch.rand(shape) < 0.4] = ids[0]
    x.view(-1)[: len(ids)] = torch.tensor(ids)[: x.numel()]

    embeds = layer(x)

    rows = layer.all_rows("default")
    assert embeds.shape == (*shape, D)
    for position in torch.cartesian_prod(*[torch.arange(n) for n in shape]).view(-1, len(shape)).tolist():
        token_id = x[tuple(position)].item()
        expected = rows[ids.index(token_id)] if token_id in ids else layer.base_layer.weight[token_id]
        assert torch.equal(embeds[tuple(position)], expected)


def test_gradient_is_the_sum_over_the_positions_of_a_row(path):
    layer = make_layer(V, 5)
    x = torch.tensor([[V, 1, V, 2], [3, 5, 4, 6]])
    upstream = torch.randn(2, 4, D)

    (layer(x) * upstream).sum().backward()

    gradient = layer.be_token_embedding["default"].weight.grad
    assert torch.allclose(gradient[0], upstream[0, 0] + upstream[0, 2])
    assert torch.equal(gradient[1], upstream[1, 1])
    assert layer.base_layer.weight.grad is None


def test_batch_without_rows_still_has_a_gradient(path):
    # Or `backward` would fail, and DistributedDataParallel would wait for it.
    layer = make_layer(V)
    layer(torch.tensor([[1, 2]])).sum().backward()
    assert torch.equal(layer.be_token_embedding["default"].weight.grad, torch.zeros(1, D))


def test_trainable_base_embedding_learns_at_ordinary_ids_only(path):
    layer = make_layer(5)
    layer.base_layer.weight.requires_grad_(True)
    layer(torch.tensor([[5, 2, 2]])).sum().backward()
    gradient = layer.base_layer.weight.grad
    assert gradient[2].tolist() == [2.0] * D
    assert gradient[5].abs().sum() == 0


def test_hook_that_makes_the_base_output_a_leaf(path):
    # As `enable_input_require_grads` does if it is called before the adapter is added.
    layer = make_layer(5)
    layer.base_layer.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    layer(torch.tensor([[5, 2]])).sum().backward()
    assert torch.equal(layer.be_token_embedding["default"].weight.grad, torch.ones(1, D))


def test_fp32_row_beside_bf16_table(path):
    layer = make_layer(V, dtype=torch.bfloat16)
    row = layer.be_token_embedding["default"].weight
    assert row.dtype == torch.float32
    embeds = layer(torch.tensor([[V, 1]]))
    assert embeds.dtype == torch.bfloat16
    assert torch.equal(embeds[0, 0], row[0].bfloat16())
    embeds.sum().backward()
    assert row.grad.dtype == torch.float32


def test_nothing_of_the_size_of_the_table_is_made(path):
    """The cost does not depend on V, forward and backward."""

    class LargestTensor(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(output):
                # Views of the table are free.
                if isinstance(tensor, torch.Tensor) and tensor.data_ptr() != layer.base_layer.weight.data_ptr():
                    self.numel = max(self.numel, tensor.numel())
            return output

    layer = make_layer(50_000, num_embeddings=50_000)
    with LargestTensor() as largest:
        layer(torch.tensor([[1, 50_000, 2]])).sum().backward()
    assert 0 < largest.numel <= 3 * D


@pytest.mark.parametrize("enabled", [True, False])
def test_ids_beyond_the_vocabulary_that_nobody_has_still_fail(enabled):
    layer = make_layer(V)
    layer.enable_adapters(enabled)
    with pytest.raises(ValueError, match="belongs to no adapter"):
        layer(torch.tensor([[V + 1]]))


def test_disabled_layer_is_the_base_embedding():
    layer = make_layer(V, 5)
    layer.enable_adapters(False)
    x = torch.tensor([[5, V, 7]])
    embeds = layer(x)
    assert torch.equal(embeds, layer.base_layer(torch.tensor([[5, 0, 7]])))
    layer.enable_adapters(True)
    assert torch.equal(layer(x)[0, 0], layer.all_rows("default")[1])


@pytest.mark.parametrize("foreign", [7, V + 3])
def test_id_of_an_inactive_adapter(path, foreign):
    layer = make_layer(5, other=[foreign])
    x = torch.tensor([[5, 1, foreign]])
    if path == "index_put":
        with pytest.raises(ValueError, match=f"Token id {foreign} belongs to adapter other, which is not active"):
            layer(x)
    else:  # it must not wait for the device, and it must not go unnoticed
        embeds = layer(x)
        assert embeds[0, 2].isnan().all() and embeds[0, :2].isfinite().all()
        embeds[0, :2].sum().backward()
        assert layer.be_token_embedding["default"].weight.grad.isfinite().all()

    layer.set_adapter("other")
    assert torch.equal(layer(x[:, 1:])[0, 1], layer.all_rows("other")[0])


def test_same_id_in_two_adapters_is_that_of_the_active_one(path):
    layer = make_layer(5, other=[5])
    x = torch.tensor([[5, 1]])
    for name in ("default", "other", "default"):
        layer.set_adapter(name)
        assert torch.equal(layer(x)[0, 0], layer.all_rows(name)[0])


def test_compiles_without_graph_breaks():
    layer = make_layer(V, 5, other=[5])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.tensor([[5, V, 7, 5]])
    upstream = torch.randn(1, 4, D)
    gradients = []
    for module in (layer, compiled):
        layer.zero_grad()
        embeds = module(x)
        (embeds * upstream).sum().backward()
        gradients.append(layer.be_token_embedding["default"].weight.grad.clone())
    assert torch.equal(embeds, layer(x))
    assert torch.allclose(*gradients)


def test_rows_are_scaled_like_the_table():
    model = get_peft_model(make_model("gemma3"), BETokenConfig(be_token_ids=[VOCAB_SIZE]))
    layer = model.get_input_embeddings()
    model.set_rows("default", layer.base_layer.weight[9:10])
    embeds = layer(torch.tensor([[VOCAB_SIZE, 9]]))
    assert torch.equal(embeds[0, 0], embeds[0, 1])
    assert torch.allclose(embeds[0, 0], layer.base_layer.weight[9] * 32**0.5)
