from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.text import Text

from .common import bold, console, say
from .config_options import with_options_of
from .loading import Loading


@with_options_of(Loading, name="loading", panel="Loading")
def chat(
    directory: Annotated[Path, typer.Argument(help="Folder of an adapter, or its name on the Hub.")],
    loading: Loading,
    compare: Annotated[Optional[Path], typer.Option(help="The prompt, to answer with it, too.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy decoding.")] = 0.0,
) -> None:
    """Chat with the prompt that an adapter stands for. An empty line, /quit or Ctrl-D ends it."""
    from ..checks import NOT_NEGATIVE, check_number
    from ..prompting import PromptRenderer, load_prompt
    from ..prompting.context import check_length, fit_dialogue

    check_number("--temperature", temperature, NOT_NEGATIVE)
    prompt = load_prompt(compare) if compare else None
    peft_model, tokenizer = loading.load(loading.find(directory, prompt))
    config = peft_model.peft_config["default"]
    renderer = PromptRenderer.for_adapter(config, tokenizer, prompt, allow_other_prompt=loading.allow_other_prompt)
    forms = {"[BE]": renderer.be} | ({"full prompt": renderer.full} if prompt else {})
    # Each form remembers its own side of the conversation
    dialogues: dict[str, list] = {name: [] for name in forms}
    for render in forms.values():
        check_length(peft_model, len(render("A")) + max_new_tokens, f"an answer of {max_new_tokens} tokens")
    if config.kept_text is not None:
        say(Text(f"(after [BE], the model reads the kept text: {config.kept_text})", style="dim"))
    while True:
        try:
            question = console.input(bold("> ")).strip()
        except (EOFError, KeyboardInterrupt):
            break
        if question in ("", "/quit"):
            break
        for name, render in forms.items():
            dialogue = dialogues[name]
            dialogue.append({"role": "user", "content": question})
            console.print(Text(f"{name}: ", style="bold cyan"), end="")
            try:
                ids, forgotten = fit_dialogue(peft_model, render, dialogue, max_new_tokens)
            except ValueError as error:
                dialogue.pop()
                say(Text(str(error), style="yellow"))
                continue
            if forgotten:
                turns = "the oldest question" if forgotten == 1 else f"the {forgotten} oldest questions"
                say(Text(f"(the context is full: {turns} and the answers to them were dropped)", style="dim"))
            answer = answered(peft_model, tokenizer, ids, max_new_tokens, temperature)
            dialogue.append({"role": "assistant", "content": answer})


def answered(model, tokenizer, ids: list[int], max_new_tokens: int, temperature: float) -> str:
    """Stream an answer to the console, and return it. One that runs in a loop is stopped, and returned without the loop."""
    from ..evaluation import find_loop, stream_answer

    shown, loop = "", None
    with contextlib.closing(stream_answer(model, tokenizer, ids, max_new_tokens, temperature)) as answers:
        for answer in answers:
            console.print(answer.text[len(shown) :], end="", soft_wrap=True)
            shown = answer.text
            loop = find_loop(answer.ids)
            if loop is not None:
                break
    wait = f"first token after {answer.ttft_ms:.0f} ms"
    console.print(f"\n({answer.input_tokens} input tokens, {wait})", style="dim")
    if loop is None:
        return shown
    say(Text("(stopped: the answer had begun to repeat itself)", style="yellow"))
    return tokenizer.decode(answer.ids[:loop], skip_special_tokens=True)
