"""A page in the browser to try adapters: one question, and the answers of the forms side by side."""

# No `annotations` from `__future__`: Gradio reads the class of `request` from the functions below, and as a string it would be
# the name of a local variable

import contextlib
import html
import os
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..evaluation import StreamedAnswer
from .side_by_side import PromptComparison


if TYPE_CHECKING:
    import gradio


TITLES = {"full": "Full prompt", "be": "[BE]", "no_prompt": "No prompt"}
NOTES = """
**First token**: from the tokenised input to the first token of the answer. The forms are answered one after the other, each alone
on the model and with nothing cached. **KV cache**: keys and values of the input. Answers are greedy.
"""
KL_NOTE = """
**KL**: KL(full prompt || this form), nats a token, a mean over the tokens of the full prompt's answer to this question.
"""
NO_KL_NOTE = """
The full prompt and the KL are missing: an adapter does not contain the prompt it stands for. `--prompt FILE` adds them.
"""
CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.be-text .html-container, .be-form .html-container { padding: 0; }
.be-form, .be-form .html-container, .be-form .prose { height: 100%; }
.be-card { height: 100%; min-height: 280px; box-sizing: border-box; padding: 14px 16px; display: flex; flex-direction: column;
  border: 1px solid var(--border-color-primary); border-radius: 10px; background: var(--block-background-fill); }
.be-card.be { border-color: var(--color-accent); box-shadow: 0 0 0 1px var(--color-accent); }
.be-card h3 { margin: 0 0 8px !important; }
.be-card .be-answer { flex: 1; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.5; }
.be-card .be-waits, .be-status { opacity: .65; }
.be-status, .be-error { padding-top: 9px; }
.be-card .be-waits { font-style: italic; }
.be-card table { width: 100%; margin: 14px 0 0 !important; font-size: .9em; border: none; border-collapse: collapse; }
.be-card tr { border: none !important; }
.be-card th, .be-card td { border: none !important; border-top: 1px solid var(--border-color-primary) !important;
  padding: 4px 0 !important; font-weight: normal; }
.be-card th { text-align: left; opacity: .65; }
.be-card td { text-align: right; font-variant-numeric: tabular-nums; font-weight: 600; }
.be-error { color: #b91c1c; font-weight: 600; }
.dark .be-error { color: #fca5a5; }
"""


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

    def cards(answers: dict, kl: dict, running: bool) -> list[str]:
        return [_card(form, answers, kl, running, "full" in forms) for form in forms]

    def controls(running: bool) -> list:
        return [
            gr.update(interactive=not running),
            gr.update(interactive=not running),
            gr.update(interactive=running),
        ]

    stops: dict[str, threading.Event] = {}  # by browser session, of the questions that are being answered

    def ask(adapter: str, question: str, max_new_tokens: int, request: gr.Request) -> Iterator[list]:  # type: ignore[name-defined]  # a local name
        stop = stops[request.session_hash] = threading.Event()
        answers: dict[str, StreamedAnswer | None] = {}
        kl: dict[str, float] = {}
        end = ""
        try:
            # Closed with this generator, so that a tab that is closed leaves the model to the next one
            with contextlib.closing(comparison.answers(adapter, question, int(max_new_tokens))) as steps:
                for answers, kl in steps:
                    if stop.is_set():
                        end = _status("Stopped.")
                        break
                    yield [_status(_doing(answers, forms)), *cards(answers, kl, True), *controls(True)]
        except (ValueError, RuntimeError) as error:
            end = f'<div class="be-error" role="alert">{html.escape(str(error))}</div>'
        finally:
            stops.pop(request.session_hash, None)
        yield [end, *cards(answers, kl, False), *controls(False)]

    def stop_answering(request: gr.Request) -> None:  # type: ignore[name-defined]  # a local name
        if request.session_hash in stops:
            stops[request.session_hash].set()
            gr.Info("Stopping after the current step.", duration=3)

    def choose(adapter: str) -> list:
        return [_describe(comparison, adapter), "", *cards({}, {}, False)]

    first = comparison.names[0]
    with gr.Blocks(title="peft_be", analytics_enabled=False) as page:
        gr.Markdown("## One learned token in place of a prompt")
        description = gr.HTML(_describe(comparison, first), elem_classes="be-text")
        with gr.Row(equal_height=True):
            adapter = gr.Dropdown(comparison.names, value=first, label="Adapter", scale=2, min_width=180)
            question = gr.Textbox(
                label="Question", placeholder="Ask something, and press Enter", scale=6, autofocus=True
            )
            length = gr.Number(96, label="Longest answer, tokens", minimum=1, precision=0, scale=2, min_width=180)
        with gr.Row():
            button = gr.Button("Ask", variant="primary", scale=0, min_width=130)
            stop = gr.Button("Stop", variant="stop", scale=0, min_width=130, interactive=False)
            with gr.Column(min_width=300):
                status = gr.HTML(elem_id="status", elem_classes="be-text")
        with gr.Row(equal_height=True):
            columns = []
            for form, card in zip(forms, cards({}, {}, False)):
                with gr.Column(min_width=280):
                    columns.append(gr.HTML(card, elem_id=f"form-{form}", elem_classes="be-form"))
        gr.Markdown(NOTES + (KL_NOTE if "full" in forms else NO_KL_NOTE))

        # The comparison itself answers one question at a time, and tells those who wait
        options = {"concurrency_limit": None, "show_progress": "hidden"}
        outputs = [status, *columns, button, adapter, stop]
        gr.on([button.click, question.submit], ask, [adapter, question, length], outputs, **options)
        stop.click(stop_answering, **options)
        adapter.change(choose, adapter, [description, status, *columns], **options)
    return page


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
    gr = import_gradio()
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
        # Fonts of the browser's machine: the default ones of Gradio may come from the network
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
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


def _describe(comparison: PromptComparison, name: str) -> str:
    config = comparison.config(name)
    rows = "1 learned token stands" if config.num_be_tokens == 1 else f"{config.num_be_tokens} learned tokens stand"
    known = "full" in comparison.forms
    prompt = f"a prompt of {len(comparison.renderers[name].prompt_ids):,} tokens" if known else "its prompt"
    return f"In <b>{html.escape(name)}</b>, {rows} for {prompt}. Model: {html.escape(str(config.base_model_name_or_path))}."


def _doing(answers: dict[str, StreamedAnswer | None], forms: tuple[str, ...]) -> str:
    if not answers:
        return "Another question is being answered: this one waits."
    form = list(answers)[-1]
    return f"{TITLES[form]}: {'reading' if answers[form] is None else 'answering'} ({len(answers)} of {len(forms)})"


def _status(text: str) -> str:
    return f'<div class="be-status">{text}</div>'


def _card(
    form: str, answers: dict[str, StreamedAnswer | None], kl: dict[str, float], running: bool, has_kl: bool
) -> str:
    """A form's column: its answer, or what it waits for, and what it cost."""
    answer = answers.get(form)
    figures = dict.fromkeys(("First token", "Input tokens", "Answer tokens", "KV cache"))
    if answer is not None:
        text = html.escape(answer.text)
        figures = {
            "First token": f"{answer.ttft_ms:,.0f} ms",
            "Input tokens": f"{answer.input_tokens:,}",
            "Answer tokens": f"{len(answer.ids):,}",
            "KV cache": f'<span title="{answer.kv_bytes:,} bytes">{_megabytes(answer.kv_bytes)}</span>',
        }
    else:
        waits = {(True, True): "Reading …", (True, False): "Waits for its turn."}
        text = f'<span class="be-waits">{waits.get((running, form in answers), "No answer.")}</span>'
    if has_kl:
        figures["KL"] = f"{kl[form]:.3f} nats/token" if form in kl else "…" if running else None
    rows = "".join(f"<tr><th>{name}</th><td>{value or '–'}</td></tr>" for name, value in figures.items())
    return (
        f'<div class="be-card {form}"><h3>{TITLES[form]}</h3>'
        f'<div class="be-answer" aria-live="polite">{text}</div><table>{rows}</table></div>'
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB" if size < 1e7 else f"{size / 1e6:,.1f} MB"
