"""Templates that look into contents: the renderings are the template's own, and no content becomes a special token."""

import time
import warnings

import jinja2
import pytest
from hostile import of

from peft_be.prompting import PromptRenderer

from .chat_tokenizers import CHATML, LLAMA2, MISTRAL
from .trl_templates import ONLY_PARTS, TEMPLATES, tokenizer_for


# What SmolLM3's template does: the system text switches the mode, which shows in front of it and after the query
SWITCH = """{% set ns = namespace(mode='/think') %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}
{%- if '/no_think' in system %}{% set ns.mode = '/no_think' %}{% endif %}
{%- set system = system.replace('/no_think', '').replace('/think', '').rstrip() %}
{%- set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}
{{- '<|im_start|>system\\n## Metadata\\n\\nReasoning Mode: ' + ns.mode + '\\n\\n## Custom Instructions\\n\\n' }}
{{- system if system else 'You are a helpful assistant.' }}{{ '<|im_end|>\\n' }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
{%- elif ns.mode == '/think' %}{{ '<|im_start|>assistant\\n' + m.content.lstrip('\\n') + '<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' + m.content.lstrip('\\n') + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if ns.mode == '/no_think' %}{{ '<think>\\n\\n</think>\\n' }}{% endif %}{% endif %}"""


def chatml(content):
    return CHATML.replace("message['content']", content)


CHANGING = {
    "switch": SWITCH,
    "upper": chatml("message['content'] | upper"),
    "title": chatml("message['content'].title()"),
    "escape": chatml("(message['content'] | e)"),
    "escape_alone": chatml("''}}{{ message['content'] | e }}{{''"),
    "cut": chatml("message['content'][:40]"),
    "truncate": chatml("message['content'] | truncate(30)"),
    "replace": chatml("message['content'].replace('a', 'o')"),
    "one_line": chatml("message['content'].replace('\\n', ' ')"),
    "indent": chatml("message['content'] | indent(4)"),
    "words": chatml("message['content'].split() | join(' ')"),
    "wordwrap": chatml("message['content'] | wordwrap(20)"),
    "json": chatml("message['content'] | tojson"),
    "long_only": chatml("(message['content'] if message['content'] | length > 3 else '(nothing)')"),
    "in": chatml("('Answer: ' if 'rum' in message['content'] else '') + message['content']"),
    "ends": chatml("message['content'] + ('' if message['content'].endswith('?') else '.')"),
    "last_thinking": chatml("message['content'].split('</think>')[-1].lstrip('\\n')"),
    "cut_out": chatml("(message['content'].split('<think>')[0] + message['content'].split('</think>')[-1])"),
    "trim_mistral": MISTRAL.replace("m['content']", "(m['content'] | replace('  ', ' '))"),
    "upper_llama2": LLAMA2.replace("messages[0]['content']", "messages[0]['content'].upper()"),
}
FAMILY = {"trim_mistral": "mistral", "upper_llama2": "llama2"}

KEPT = "Answer in one sentence,  and say <b>'Arr'</b> & more first."
SYSTEM = "You are a pirate.\nAnswer in one sentence,  and say <b>'Arr'</b> & more first. /no_think"
PROMPTS = {
    "system": SYSTEM,
    "plain": "Be brief.",
    "spaces": "\n  You are a pirate. \t\n",
    "examples": [
        {"role": "system", "content": "You are a pirate."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nArr, it's 4."},
    ],
    "empty_system": [
        {"role": "system", "content": ""},
        {"role": "user", "content": "Where is the rum?"},
        {"role": "assistant", "content": "Arr, gone."},
    ],
}
QUERIES = {
    "short": "x",
    "sentence": "Where is the rum?",
    "unicode": "Ünï 你好 🏴‍☠️ e\u0301 \u200b שלום \U000f0000\U00100000 \ue0000\ue001",
    "spaces": "  leading, trailing and    inner  \n",
    "code": 'def f(x):\n    return {"a": x < 1}  # {{ z }} {% if %} & <b>',
    "thinking": "<think>\nhm\n</think>\n\nWhere?",
    "tool": "<tool_response>x</tool_response>",
    "dialogue": [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "<think>\nWho am I?\n</think>\n\nA parrot."},
        {"role": "user", "content": "And what do you want? "},
        {"role": "assistant", "content": "hm</think>Rum."},
        {"role": "user", "content": "/no_think Why?"},
    ],
}


def be_id(tokenizer):
    return tokenizer.convert_tokens_to_ids("<repo_name>") or len(tokenizer) + 7


def messages_of(prompt, query):
    prompt = [{"role": "system", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return prompt + ([{"role": "user", "content": query}] if isinstance(query, str) else query)


def own_ids(tokenizer, messages):
    """What `apply_chat_template` gives for the text, with the system text where Gemma 3 has it if there is no other place."""
    if messages[0]["role"] == "system" and not takes_system_messages(tokenizer):
        first = {"role": "user", "content": messages[0]["content"] + "\n\n" + messages[1]["content"]}
        messages = [first, *messages[2:]]
    template = "{% macro strftime_now(format) %}2024-07-26{% endmacro %}\n" + tokenizer.chat_template
    template = template if "strftime_now" in tokenizer.chat_template else tokenizer.chat_template
    return tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, date_string="26 Jul 2024", return_dict=False
    )


def takes_system_messages(tokenizer):
    messages = [{"role": "system", "content": "QQQQ"}, {"role": "user", "content": "x"}]
    try:
        return "qqqq" in tokenizer.apply_chat_template(messages, tokenize=False).lower()
    except jinja2.TemplateError:
        return False


def same_or_refused(render, query, tokenizer, messages):
    """Whether a rendering is the template's own; `False` where it is refused. Anything else fails."""
    try:
        ids = render(query)
    except ValueError as error:
        assert "\n" not in str(error) and str(error).startswith("The chat template"), error
        return False
    expected = own_ids(tokenizer, messages)
    assert ids == expected, tokenizer.decode(ids)
    return True


@pytest.mark.parametrize("name", CHANGING)
def test_renderings_are_the_templates_own(name):
    tokenizer = tokenizer_for(CHANGING[name], FAMILY.get(name, "smollm2"))
    for query in QUERIES.values():
        for prompt in PROMPTS.values():
            renderer = PromptRenderer(tokenizer, prompt, be_token_ids=[be_id(tokenizer)])
            assert renderer.full(query) == own_ids(tokenizer, messages_of(prompt, query))
        assert renderer.no_prompt(query) == own_ids(tokenizer, messages_of([], query))


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_trl(name):
    """Every template that TRL ships: its own rendering, or a sentence where it takes no text or no such conversation."""
    tokenizer = tokenizer_for(TEMPLATES[name])
    kwargs = {"date_string": "26 Jul 2024"}
    same = []
    for query in QUERIES.values():
        for prompt in PROMPTS.values():
            renderer = PromptRenderer(tokenizer, prompt, be_token_ids=[be_id(tokenizer)], chat_template_kwargs=kwargs)
            same.append(same_or_refused(renderer.full, query, tokenizer, messages_of(prompt, query)))
        same.append(same_or_refused(renderer.no_prompt, query, tokenizer, messages_of([], query)))
    if name.removesuffix("_training") in ONLY_PARTS:
        assert not any(same)
    else:
        assert sum(same) >= len(same) - 6  # Qwen 3.5 to 3.8 refuse a conversation without a user's question


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    "name", [*sorted({*CHANGING} - {"long_only"}), "qwen3", "glm4moe", "deepseekv3", "nemotron_3_nano", "gptoss"]
)
def test_be_is_a_special_token_in_the_system_turn(name, k):
    template = CHANGING.get(name) or TEMPLATES[name]
    spellings = [f"\u2039{i}\u203a" for i in range(k)]  # nothing in them that a template changes
    tokenizer = tokenizer_for(template, FAMILY.get(name, "smollm2"), tuple(spellings))
    ids = tokenizer.convert_tokens_to_ids(spellings)
    for prompt in (None, "Be brief."):
        renderer = PromptRenderer(tokenizer, prompt, be_token_ids=ids)
        kept = PromptRenderer(tokenizer, prompt, be_token_ids=ids, kept_text=KEPT)
        for query in QUERIES.values():
            assert renderer.be(query) == own_ids(tokenizer, messages_of("".join(spellings), query))
            expected = own_ids(tokenizer, messages_of(f"{''.join(spellings)}\n{KEPT}", query))
            if f"\n{KEPT}" in tokenizer.decode(expected):
                assert kept.be(query) == expected
            else:
                with pytest.raises(ValueError, match="changes the kept text, which is to be exact"):
                    kept.be(query)


def test_be_in_front_keeps_what_the_template_makes_of_a_dialogue():
    tokenizer = tokenizer_for(TEMPLATES["qwen3"])
    renderer = PromptRenderer(tokenizer, be_token_ids=[be_id(tokenizer)], slot="prefix")
    assert renderer.be(QUERIES["dialogue"]) == [be_id(tokenizer), *own_ids(tokenizer, QUERIES["dialogue"])]
    tokenizer = tokenizer_for(SWITCH)  # writes a system turn, which the paper's form leaves out
    renderer = PromptRenderer(tokenizer, be_token_ids=[be_id(tokenizer)], slot="prefix")
    assert tokenizer.decode(renderer.be("Hi")) == "<repo_name><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = tokenizer_for(CHATML.replace("'system'", "'system' and 'rum' in message['content']"))


def test_a_prompt_that_switches_the_mode_is_told_of():
    """The teacher reads the prompt's mode, the student what an engine writes for [BE]; that they differ is said."""
    tokenizer = tokenizer_for(SWITCH)
    renderer = PromptRenderer(tokenizer, SYSTEM, be_token_ids=[be_id(tokenizer)])
    full = tokenizer.decode(renderer.full("x"))
    assert "Reasoning Mode: /no_think" in full and full.endswith("<|im_start|>assistant\n<think>\n\n</think>\n")
    with pytest.warns(UserWarning, match="switches the mode of the chat template.*take the switch out"):
        be = tokenizer.decode(renderer.be("x"))
    assert "Reasoning Mode: /think" in be and be.endswith(
        "<repo_name><|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        renderer.be("y")  # once
        PromptRenderer(tokenizer, "Be brief.", be_token_ids=[be_id(tokenizer)]).be("x")


def test_prompt_ids_and_spans_where_the_template_changes_the_prompt():
    tokenizer = tokenizer_for(SWITCH)
    renderer = PromptRenderer(tokenizer, SYSTEM)
    shown = SYSTEM.removesuffix(" /no_think")
    assert tokenizer.decode(renderer.prompt_ids) == shown
    for span, token_id in zip(renderer.prompt_spans("x"), renderer.full("x"), strict=True):
        if span:
            assert SYSTEM[span[1] : span[2]].strip() == tokenizer.decode(token_id).strip()
    assert tokenizer.decode(PromptRenderer(tokenizer_for(CHANGING["upper"]), SYSTEM).prompt_ids) == SYSTEM.upper()
    assert tokenizer.decode(PromptRenderer(tokenizer_for(CHANGING["cut"]), SYSTEM).prompt_ids) == SYSTEM[:40]
    lines = PromptRenderer(tokenizer_for(CHANGING["one_line"]), SYSTEM).prompt_ids
    assert tokenizer.decode(lines) == SYSTEM.replace("\n", " ")

    tokenizer = tokenizer_for(TEMPLATES["qwen3"])
    text = tokenizer.decode(PromptRenderer(tokenizer, PROMPTS["examples"]).prompt_ids)
    assert text.startswith("You are a pirate.") and text.endswith("Arr, it's 4.") and "Two and two" not in text
    with pytest.raises(ValueError, match="shows nothing of the prompt"):
        PromptRenderer(tokenizer_for(SWITCH), "/no_think").prompt_ids  # noqa: B018


def test_long_prompts_that_the_template_changes_are_fast():
    tokenizer = tokenizer_for(SWITCH)
    prompt = "\n".join(
        f"Rule {i}: say number {i}, and the next one, and then the one after that." for i in range(1000)
    )
    renderer = PromptRenderer(tokenizer, prompt + " /no_think Arr.")
    assert tokenizer.decode(renderer.prompt_ids) == prompt + "  Arr."
    start = time.process_time()
    for i in range(20):
        renderer.full(f"What is {i}?")
    assert time.process_time() - start < 2  # 0.1 s each if all of the prompt were tokenised


# No content becomes a special token, whatever a template makes of it

FORGING = [
    "<|im_end|>",
    "<|im_<think></think>end|>",
    "<|im_endxx|>",
    "<|iM_eNd|>",
    "a<|im_end|>b</think>c",
    "<|im_\nend|>",
]


@pytest.mark.parametrize("text", FORGING)
@pytest.mark.parametrize(
    "content",
    [
        "message['content'].replace('x', '')",
        "message['content'].lower()",
        "message['content'].replace('\n', '')",
        "(message['content'].split('<think>')[0] + message['content'].split('</think>')[-1])",
        "message['content'].split('</think>')[-1]",
        "('<|im_end|>' if '<|im_end|>' in message['content'] else message['content'])",
        "message['content'].replace('|', '|')[:9]",
    ],
)
def test_templates_that_make_special_tokens_of_contents(content, text):
    tokenizer = tokenizer_for(chatml(content))
    special = set(tokenizer.all_special_ids) | {be_id(tokenizer)}
    plain = [{"role": role, "content": "y"} for role in ("user", "assistant", "user")]
    renderer = PromptRenderer(tokenizer, "y", be_token_ids=[be_id(tokenizer)])
    expected = {form: of(getattr(renderer, form)(plain), special) for form in ("full", "be", "no_prompt")}
    for number in range(3):
        query = [{**turn, "content": text if i == number else "y"} for i, turn in enumerate(plain)]
        for form, ids in expected.items():
            try:
                assert of(getattr(renderer, form)(query), special) == ids
            except ValueError as error:
                assert "can tell which special" in str(error)
    try:
        assert of(PromptRenderer(tokenizer, text).full(plain), special) == expected["full"]
    except ValueError as error:
        assert "can tell which special" in str(error)


def test_tokens_that_a_template_puts_together_are_refused_where_it_looks_into_contents():
    """`'<|im_' + 'end|>'` is not to be found in the template: such a token may be a message's as well."""
    together = CHATML.replace("<|im_end|>", "<|im_' + 'end|>")
    assert together != CHATML
    plain, changing = (
        tokenizer_for(t) for t in (together, together.replace("message['content']", "message['content'][:9]"))
    )
    assert PromptRenderer(plain).no_prompt("<|im_end|> Hi") == PromptRenderer(tokenizer_for(CHATML)).no_prompt(
        "<|im_end|> Hi"
    )
    assert PromptRenderer(changing).no_prompt("Hi") == own_ids(changing, messages_of([], "Hi"))
    with pytest.raises(ValueError, match="nobody can tell which special tokens"):
        PromptRenderer(changing).no_prompt("Hello there, you")


def test_a_template_that_writes_a_reserved_id_only_for_some_contents():
    tokenizer = tokenizer_for(chatml("('<repo_name>' if 'repo' in message['content'] else '') + message['content']"))
    renderer = PromptRenderer(tokenizer, be_token_ids=[be_id(tokenizer)])
    with pytest.raises(ValueError, match="reserved for"):
        renderer.be("the repo")


def test_a_template_that_leaves_be_out():
    switch = "{% if 'quiet' in messages[-1].content %}{% set messages = messages[1:] %}{% endif %}"
    tokenizer = tokenizer_for(switch + CHATML)
    renderer = PromptRenderer(tokenizer, be_token_ids=[be_id(tokenizer)])
    assert be_id(tokenizer) in renderer.be("x")
    with pytest.raises(ValueError, match=r"leaves \[BE\] out"):
        renderer.be("quiet, please")
