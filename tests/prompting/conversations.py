"""Prompts and queries of every form."""

SYSTEM = "You are a pirate.\nAnswer in one sentence, and say 'Arr' first."
EXAMPLES = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "Arr, it's 4.\n\nAnything else?"},
    {"role": "user", "content": "Où est la gare ?"},
    {"role": "assistant", "content": "Arr, là-bas."},
]
PROMPTS = {
    "system": SYSTEM,
    "system_with_spaces": f"\n  {SYSTEM} \n",
    "examples": EXAMPLES,
    "system_and_examples": [{"role": "system", "content": SYSTEM}, *EXAMPLES],
}
KEPT = {"sentence": "You are a pirate.", "lines": "Où est la gare ?\n\n  {\"a\": [1, 'x']} \\n 你好 {{ z }}"}
QUERIES = {
    "short": "x",
    "sentence": "What's the weather in Paris?",
    "spaces": "  leading, trailing and    inner  \n",
    "lines": "\n\nfirst\n\n\nsecond\r\n\tthird\n",
    "unicode": "Ünï 你好 🏴‍☠️ e\u0301 ﬁ ½ ＡＢ ▁ Ġ \u200b\ufeff \u2028 שלום",
    "code": "def f(x):\n    return x < 1 | x > 2  # <b> [y] {{ z }} {% if %}",
    "tags": "<think>hm</think> <tool_call>x</tool_call>",
    "placeholders": "\ue0000\ue001 \ue002 \ue0001\ue001",
    "dialogue": [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": " A parrot. "},
        {"role": "user", "content": "And what do you want?"},
    ],
}
