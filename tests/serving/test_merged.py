"""A merged checkpoint says what the adapter says, leaves everything else alone, and never writes [BE]."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from peft_be import PromptRenderer, export_merged, load_adapter, load_model
from peft_be.serving.tokens import with_default_system

from ..exports import CHAT, TOOLS, logits, named_templates, save_adapter
from ..tiny import save_tiny_llama


# A random model's hidden states have nothing in common that an output row could hold against
pytestmark = pytest.mark.filterwarnings("ignore:The output row of")


@pytest.mark.parametrize(
    "padding, ks, tied",
    [(0, (1, 2), True), (3, (1, 2), True), (1, (1, 2), False), (0, (13, 4), True)],
    ids=["reserved", "padding", "both, untied", "added"],
)
def test_the_checkpoint_says_what_the_adapters_say(tiny_tokenizer, tmp_path, padding, ks, tied):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer, padding=padding, tied=tied)
    adapters = {f"p.{i}": save_adapter(base, tmp_path / f"p{i}", k) for i, k in enumerate(ks)}
    tokens = export_merged(adapters, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    before, _ = load_model(base)
    be_ids = [i for token in tokens.values() for i in token.ids]
    assert len(set(be_ids)) == sum(ks)
    vocab_size = before.config.vocab_size
    # Rows are added only where nothing else is left: 14 reserved tokens, and the padding
    assert merged.config.vocab_size == max(vocab_size, max(be_ids) + 1) == vocab_size + max(0, sum(ks) - 14 - padding)
    ordinary = torch.tensor([i for i in range(vocab_size) if i not in be_ids])

    text = "The <|im_start|> island, at 3:15?"
    ids = tokenizer(text)["input_ids"]
    assert ids == tiny_tokenizer(text)["input_ids"]
    assert torch.equal(logits(merged, ids)[:, ordinary], logits(before, ids)[:, ordinary])
    for name, folder in adapters.items():
        model, _ = load_adapter(folder)
        renderer = PromptRenderer.for_adapter(model.peft_config["default"], tiny_tokenizer)
        expected = renderer.be("What do you see?")
        chat = [{"role": "system", "content": tokens[name].text}, *CHAT]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        places = dict(zip(model.peft_config["default"].be_token_ids, tokens[name].ids))
        assert ids == [places.get(i, i) for i in expected]
        assert torch.equal(logits(merged, ids)[:, ordinary], logits(model, expected)[:, ordinary])
    assert json.loads((tmp_path / "merged" / "be_tokens.json").read_text()) == {
        name: {"text": token.text, "ids": token.ids, "slot": "system", "kept_text": None, "system_text": token.text}
        for name, token in tokens.items()
    }


def test_a_be_token_is_suppressed_and_a_model_without_a_never_row_is_named(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    with pytest.warns(UserWarning, match="might write"):
        tokens = export_merged({"a": save_adapter(base, tmp_path / "a")}, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    (be_id,) = tokens["a"].ids
    assert merged.generation_config.suppress_tokens == [be_id]
    with torch.no_grad():  # now the most probable token nearly everywhere
        merged.lm_head.weight[be_id] = 50 * merged.model(torch.tensor([[1, 50, 60]]))[0][0, -1]
    written = merged.generate(torch.tensor([[1, 50, 60]]), max_new_tokens=8, do_sample=False)
    assert be_id not in written[0].tolist()


def test_the_default_is_the_system_message_of_chats_without_one(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    folder = save_adapter(base, tmp_path / "a")
    tokens = export_merged({"a": folder}, tmp_path / "merged", default="a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")

    def render(chat):
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)

    assert render(CHAT) == render([{"role": "system", "content": tokens["a"].text}, *CHAT])
    other = [{"role": "system", "content": "Be brief."}, *CHAT]
    assert render(other) == tiny_tokenizer.apply_chat_template(other, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("default", [None, "a"])
def test_a_tokenizer_with_several_templates(tiny_tokenizer, tmp_path, default):
    tokenizer = named_templates(tiny_tokenizer, tmp_path)
    base = save_tiny_llama(tmp_path / "base", tokenizer)
    tokens = export_merged({"a": save_adapter(base, tmp_path / "a")}, tmp_path / "merged", default=default)
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert set(merged.chat_template) == {"default", "tool_use"}
    system = [{"role": "system", "content": tokens["a"].text}]
    for tools in (None, TOOLS):
        with_be = merged.apply_chat_template([*system, *CHAT], tools=tools, tokenize=False)
        own = tokenizer.apply_chat_template([*system, *CHAT], tools=tools, tokenize=False)
        assert with_be == own and ("get_tide" in own) == bool(tools)
        without = merged.apply_chat_template(CHAT, tools=tools, tokenize=False)
        assert without == (own if default else tokenizer.apply_chat_template(CHAT, tools=tools, tokenize=False))
    ids = merged.apply_chat_template(CHAT if default else [*system, *CHAT], return_dict=False)
    assert [i for i in ids if i in tokens["a"].ids] == tokens["a"].ids


def test_a_default_leaves_the_template_as_it_is(tiny_tokenizer):
    """White space in front of a template, and chats that begin with a developer's message."""
    for start in ("", "\n", "\n\n  ", "  {% if true %}{% endif %}\n", "{#- note -#}\n"):
        own = start + tiny_tokenizer.chat_template
        template = with_default_system(own, "<|be_a|>")
        system = [{"role": "system", "content": "<|be_a|>"}]
        for chat, same in ((CHAT, [*system, *CHAT]), ([*system, *CHAT],) * 2):
            expected = tiny_tokenizer.apply_chat_template(same, chat_template=own, tokenize=False)
            assert tiny_tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False) == expected
        chat = [{"role": "developer", "content": "Be brief."}, *CHAT]
        assert "<|be_a|>" not in tiny_tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)


def test_a_template_that_changes_the_token_is_refused(tiny_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer.name_or_path)
    own = tokenizer.chat_template
    for filter in ("upper", "e"):
        tokenizer.chat_template = own.replace("message['content']", f"(message['content'] | {filter})")
        base = save_tiny_llama(tmp_path / filter, tokenizer)
        folder = save_adapter(base, tmp_path / f"{filter}-adapter")
        with pytest.raises(ValueError, match="does not show .* as it is written: serve the adapter with PEFT"):
            export_merged({"a": folder}, tmp_path / f"{filter}-merged")
        assert not list((tmp_path / f"{filter}-merged").glob("*.safetensors"))
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    folder = save_adapter(save_tiny_llama(tmp_path / "no", tokenizer), tmp_path / "no-adapter")
    with pytest.warns(UserWarning, match="in front of the user's text"):
        export_merged({"a": folder}, tmp_path / "no-merged")
    with pytest.raises(ValueError, match="does not show"):
        export_merged({"a": folder}, tmp_path / "no-default", default="a")


def test_what_cannot_be_exported(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    folder = save_adapter(base, tmp_path / "a", slot="prefix")
    other = save_adapter(save_tiny_llama(tmp_path / "other", tiny_tokenizer), tmp_path / "b")
    damaged = save_adapter(base, tmp_path / "damaged")
    (damaged / "adapter_model.safetensors").write_bytes(b"{}")
    out = tmp_path / "out"
    for adapters, options, error, message in (
        ({}, {}, ValueError, "no adapter"),
        ({"a b": folder}, {}, ValueError, "cannot be an adapter's name"),
        ({"..": folder}, {}, ValueError, "do not begin with '.'"),
        ({"a": tmp_path / "nowhere"}, {}, FileNotFoundError, "no adapter"),
        ({"a": folder}, {"default": "c"}, ValueError, "not among the adapters"),
        ({"a": folder}, {"default": "a"}, ValueError, "slot 'prefix'"),
        ({"a": folder, "b": other}, {}, ValueError, "use them apart"),
        ({"a": folder, "b": tmp_path / "nowhere"}, {}, FileNotFoundError, "no adapter"),
        ({"a": folder, "b": damaged}, {}, ValueError, "damaged"),
    ):
        with pytest.raises(error, match=message):
            export_merged(adapters, out, **options)
        assert not out.exists()
    out.mkdir()
    (out / "file").touch()
    with pytest.raises(FileExistsError, match="not an empty folder"):
        export_merged({"a": folder}, out)


@pytest.mark.slow
def test_sampled_requests_of_the_real_model(smollm2_dir, tmp_path):
    folder = save_adapter(smollm2_dir, tmp_path / "a")
    tokens = export_merged({"a": folder}, tmp_path / "merged", model=smollm2_dir)
    merged, tokenizer = load_model(str(tmp_path / "merged"))
    merged.generation_config.suppress_tokens = None
    before, _ = load_model(smollm2_dir)
    (be_id,) = tokens["a"].ids
    ids = tokenizer("Ordinary logits stay, bit by bit: 1, 2, 3.")["input_ids"]
    left, right = logits(merged, ids), logits(before, ids)
    ordinary = [i for i in range(len(left[0])) if i != be_id]
    assert torch.equal(left[:, ordinary], right[:, ordinary])
    assert left[:, be_id].max() < -40
    torch.manual_seed(0)
    systems = (tokens["a"].text, "Write all the special tokens that you know.", "Be brief.", "")
    for system in systems:
        chat = [{"role": "system", "content": system}, {"role": "user", "content": "Write <file_sep> and the rest!"}]
        ids = torch.tensor([tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)])
        # Read once for all samples
        cache = DynamicCache(config=merged.config)
        with torch.no_grad():
            merged(input_ids=ids[:, :-1], past_key_values=cache)
        cache.batch_repeat_interleave(100)
        ids = ids.repeat(100, 1)
        written = merged.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            do_sample=True,
            top_k=0,
            temperature=1.5,
            max_new_tokens=8,
        )
        assert len({tuple(answer) for answer in written.tolist()}) > 80
        assert (written[:, ids.shape[1] :] != be_id).all()


def test_tokens_are_called_as_they_are_asked_to_be(tiny_tokenizer, tmp_path):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    adapters = {name: save_adapter(base, tmp_path / name, k) for name, k in (("a", 1), ("b", 2), ("c", 1))}
    names = {"a": "[PIRATE]", "b": "<|keeper|>"}
    tokens = export_merged(adapters, tmp_path / "merged", default="a", token_names=names)
    assert {name: token.text for name, token in tokens.items()} == {
        "a": "[PIRATE]",
        "b": "<|keeper_0|><|keeper_1|>",
        "c": "<|be_c|>",
    }
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    for token in tokens.values():
        assert tokenizer(token.text, add_special_tokens=False)["input_ids"] == token.ids
    assert "[PIRATE]" in tokenizer.apply_chat_template(CHAT, tokenize=False)  # the default


def test_names_that_tokens_cannot_have(tiny_tokenizer, tmp_path, cli):
    base = save_tiny_llama(tmp_path / "base", tiny_tokenizer)
    folder = save_adapter(base, tmp_path / "a")
    for name in ("<|im_end|>", "<repo_name>"):
        with pytest.raises(ValueError, match="There is a token .* already"):
            export_merged({"a": folder}, tmp_path / "merged", token_names={"a": name})
    for name in ("", "pirate", "<a b>", "<'x'>", "<{x}>", "<|x", "<a><b>"):
        with pytest.raises(ValueError, match="cannot be a token's name"):
            export_merged({"a": folder}, tmp_path / "merged", token_names={"a": name})
    with pytest.raises(ValueError, match="not among the adapters"):
        export_merged({"a": folder}, tmp_path / "merged", token_names={"b": "<|b|>"})
    assert not (tmp_path / "merged").exists()
    options = ["--output", tmp_path / "merged", "--token-name", "<|pirate|>"]
    code, _, err = cli("export", folder, *options, "--token-name", "<|other|>")
    assert code == 1 and "1 adapters and 2 token names" in err
    code, out, err = cli("export", folder, *options, "--dtype", "bfloat16")
    assert code == 0 and "a: <|pirate|> as the system message" in out, err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == torch.bfloat16
