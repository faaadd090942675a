from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer

from .common import bold, say
from .config_options import with_options_of
from .loading import Loading


@with_options_of(Loading, name="loading", panel="Loading")
def demo(
    directories: Annotated[
        list[Path], typer.Argument(help="Adapters of one base model: folders, or names on the Hub.")
    ],
    loading: Loading,
    prompt: Annotated[
        Optional[list[Path]],
        typer.Option(help="The prompt that was compressed; one for each adapter, in their order."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is open to the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 7860,
) -> None:
    """Serve a page that answers questions with the full prompt, with [BE] and with no prompt. Ctrl-C ends it."""
    from ..prompting import load_prompt
    from ..serving.page import check_address, import_gradio, launch_page, wait
    from ..serving.side_by_side import PromptComparison

    # What can fail at once does so before the model is loaded
    import_gradio()
    check_address(host, port)
    prompts = [load_prompt(path) for path in prompt or []]
    comparison = PromptComparison(directories, prompts, **asdict(loading))
    page = launch_page(comparison, host, port)
    say("The page is at ", bold(page.local_url), ". Ctrl-C ends it.")
    wait(page)
