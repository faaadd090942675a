"""A page in the browser to try adapters: a conversation, with the answers of the forms side by side."""

# No `annotations` from `__future__`: Gradio reads the class of `request` from the functions below, and as a string it would be
# the name of a local variable

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .cards import card, describe, error, heading, history, status
from .side_by_side import PromptComparison, Turn


if TYPE_CHECKING:
    import gradio


EXAMPLES = (
    "Who are you?",
    "What do you see around you?",
    "Can you help me with a problem?",
    "What do you think of the sea?",
)
NOTES = """
**First token**: from the tokenised input to the first token of the answer. The forms are answered one after the other, each alone
on the model and with nothing cached; each time is one measurement, and other work of the machine counts. **KV cache**: keys and
values of the input. Answers are greedy. Each form remembers its own answers; an adapter that was trained on single questions may
follow the prompt less in later turns.
"""
KL_NOTE = """
**KL**: KL(full prompt || this form), nats a token, a mean over the tokens of the full prompt's answer to this question, after the
conversation that the full prompt had. **Gap closed**: 1 is the full prompt's behaviour, 0 that of no prompt. One answer says little.
"""
NO_KL_NOTE = """
The full prompt and the KL are missing: an adapter does not contain the prompt it stands for. `--prompt FILE` adds them.
"""
ASSETS = Path(__file__).parents[1] / "assets" / "demo"


def check_address(host: str, port: int) -> None:
    """Raises an `OSError` if no page can be served at `port` of `host`. Call it before the model is loaded."""
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"The page cannot be served at {host}:{port} ({reason}): choose another --port.") from error


def build_page(comparison: PromptComparison) -> "gradio.Blocks":
    """
    The page, as a Gradio app that is not served yet.

    Args:
        comparison ([`PromptComparison`]): the adapters.

    Raises:
        `ImportError`: Gradio is not installed.
    """
    gr = import_gradio()
    forms = comparison.forms
    with gr.Blocks(title="peft_be", analytics_enabled=False) as page:
        gr.Markdown("## One learned token in place of a prompt")
        description = gr.HTML(describe(comparison, comparison.names[0]), elem_classes="be-text")
        turns = gr.State([])
        with gr.Row(equal_height=True):
            adapter = gr.Dropdown(comparison.names, value=comparison.names[0], label="Adapter", scale=2, min_width=180)
            question = gr.Textbox(
                label="Question", placeholder="Ask something, and press Enter", scale=6, autofocus=True
            )
            length = gr.Number(96, label="Longest answer, tokens", minimum=1, precision=0, scale=2, min_width=180)
        with gr.Row(elem_classes="be-examples"):
            examples = [gr.Button(text, size="sm") for text in EXAMPLES]
        with gr.Row():
            button = gr.Button("Ask", variant="primary", scale=0, min_width=120)
            stop = gr.Button("Stop", variant="stop", scale=0, min_width=120, interactive=False)
            fresh = gr.Button("New conversation", scale=0, min_width=200)
            with gr.Column(min_width=300):
                state = gr.HTML(elem_id="status", elem_classes="be-text")
        asked = gr.HTML(elem_id="heading", elem_classes="be-text")
        with gr.Row(equal_height=True):
            columns = []
            for form in forms:
                with gr.Column(min_width=280):
                    columns.append(gr.HTML(card(form, None, forms), elem_id=f"form-{form}", elem_classes="be-form"))
        past = gr.HTML(elem_id="history", elem_classes="be-text")
        gr.Markdown(NOTES + (KL_NOTE if "full" in forms else NO_KL_NOTE))

        # The comparison itself answers one question at a time, and tells those who wait
        options = {"concurrency_limit": None, "show_progress": "hidden"}
        idle = [button, adapter, fresh, *examples]  # while a question is answered
        ask, stop_answering, clear = _handlers(comparison, len(idle))
        shown = [state, asked, *columns, past, turns]
        inputs, outputs = [adapter, question, length, turns], [*shown, *idle, stop]
        gr.on([button.click, question.submit], ask, inputs, outputs, **options)
        for example in examples:
            fill = example.click(lambda text=example.value: text, None, question, **options)
            fill.then(ask, inputs, outputs, **options)
        stop.click(stop_answering, **options)
        gr.on([adapter.change, fresh.click], clear, adapter, [description, *shown], **options)
    return page


def _handlers(comparison: PromptComparison, num_idle: int) -> tuple[Callable, Callable, Callable]:
    """What the page does to ask, to stop, and to begin again. While it answers, `num_idle` controls are off, and Stop is on."""
    gr = import_gradio()
    forms = comparison.forms
    stops: dict[str, threading.Event] = {}  # by browser session, of the questions that are being answered

    def view(turn: Turn | None, said: str, turns: list[Turn], running: bool = False) -> list:
        """Values of the page's parts. The current turn is above, and not in the history."""
        shown = [said, heading(turn), *(card(form, turn, forms, running) for form in forms)]
        return [*shown, history([old for old in turns if old is not turn], forms), turns]

    def controls(running: bool) -> list:
        return [gr.update(interactive=not running)] * num_idle + [gr.update(interactive=running)]

    def ask(
        adapter: str,
        question: str,
        max_new_tokens: int,
        turns: list[Turn],
        request: gr.Request,  # type: ignore[name-defined]  # a local name
    ) -> Iterator[list]:
        stop = stops[request.session_hash] = threading.Event()
        turn: Turn | None = None
        said = ""
        try:
            # Closed with this generator, so that a tab that is closed leaves the model to the next one
            with contextlib.closing(comparison.answers(adapter, question, int(max_new_tokens), turns)) as steps:
                for turn in steps:
                    if stop.is_set():
                        # All answers are there while the forms are compared
                        turn.step = "done" if turn.step == "compares" else "stopped"
                        break
                    yield [*view(turn, status(turn, forms), turns, True), *controls(True)]
            said = status(turn, forms) if turn else ""
        except (ValueError, RuntimeError) as problem:
            said = error(problem)
        finally:
            stops.pop(request.session_hash, None)
        # A question without any answer is not part of the conversation
        turns = [*turns, turn] if turn is not None and any(turn.answers.values()) else turns
        yield [*view(turn, said, turns), *controls(False)]

    def stop_answering(request: gr.Request) -> None:  # type: ignore[name-defined]  # a local name
        if request.session_hash in stops:
            stops[request.session_hash].set()
            gr.Info("Stopping after the current step.", duration=3)

    def clear(adapter: str) -> list:
        return [describe(comparison, adapter), *view(None, "", [])]

    return ask, stop_answering, clear


def launch_page(comparison: PromptComparison, host: str = "127.0.0.1", port: int = 7860) -> "gradio.Blocks":
    """
    Serve the page from a thread of its own, until its `close()` or the end of the program. The browser needs no network: all of
    the page comes from this machine.

    Args:
        comparison ([`PromptComparison`]): the adapters.
        host (`str`, *optional*, defaults to `"127.0.0.1"`): address to listen at.
        port (`int`, *optional*, defaults to `7860`): port to listen at.

    Returns:
        `gradio.Blocks`: the page; its `local_url` is its address.

    Raises:
        `ImportError`: Gradio is not installed.
        `OSError`: the page cannot be served there.
    """
    import_gradio()
    check_address(host, port)
    page = build_page(comparison)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        theme=_theme(),
        css=(ASSETS / "page.css").read_text(encoding="utf-8"),
    )
    return page


def wait(page: "gradio.Blocks") -> None:
    """Wait until Ctrl-C, which closes the page."""
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)


def import_gradio():
    """The module `gradio`, with nothing that reports its use to anybody."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise ImportError(f'The page needs Gradio ({error}): pip install "peft_be[demo]".') from error
    return gradio


def _theme() -> "gradio.themes.Base":
    """Fonts of the browser's machine, for Gradio's own may come from the network; and buttons that can be read."""
    themes = import_gradio().themes
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    colours = {}
    for button, colour, under_pointer in (("primary", "#1d4ed8", "#1e40af"), ("cancel", "#b91c1c", "#991b1b")):
        for scheme in ("", "_dark"):
            colours[f"button_{button}_background_fill{scheme}"] = colour
            colours[f"button_{button}_background_fill_hover{scheme}"] = under_pointer
    return themes.Default(primary_hue="blue", **fonts).set(**colours)
