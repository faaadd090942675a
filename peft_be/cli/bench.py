from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.table import Table

from ..figures import stand_in_length
from .common import console, say
from .config_options import with_options_of
from .figures import Figures
from .loading import Loading
from .options import QUERY_FILES, QueryField
from .progress import progress_bars


@with_options_of(Figures, without=("card",), name="figures")
@with_options_of(Loading, name="loading", panel="Loading")
def bench(
    directory: Annotated[Path, typer.Argument(help="Folder of an adapter, or its name on the Hub.")],
    prompt: Annotated[Path, typer.Option(help="The prompt that was compressed.")],
    figures: Figures,
    loading: Loading,
    queries: Annotated[
        Optional[Path], typer.Option(help=f"Users' turns, four general ones by default: {QUERY_FILES}")
    ] = None,
    query_field: QueryField = None,
    batch_sizes: Annotated[
        Optional[str], typer.Option(help="Requests answered together, separated by commas.", show_default="1,4")
    ] = None,
    new_tokens: Annotated[
        Optional[int], typer.Option(min=1, help="Tokens of an answer after the first one.", show_default="32")
    ] = None,
    repeats: Annotated[
        Optional[int], typer.Option(min=2, help="Measurements of each figure.", show_default="5")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="A first look: batch size 1, 8 new tokens, 2 repeats, where nothing else is given."
        ),
    ] = False,
) -> None:
    """Measure latency, decoding speed and cache size with the full prompt, with it cached, without it, and with [BE]."""
    from ..adapters.folder import read_report
    from ..data import load_queries
    from ..evaluation import BenchConfig, bench_inference
    from ..prompting import load_prompt

    given: dict[str, Any] = {"batch_sizes": whole_numbers(batch_sizes), "new_tokens": new_tokens, "repeats": repeats}
    settings = replace(
        BenchConfig.quick() if quick else BenchConfig(),
        **{name: value for name, value in given.items() if value is not None},
    )
    if query_field and not queries:
        raise ValueError("--query-field is the field of --queries: give these, too.")
    text, asked = load_prompt(prompt), load_queries(queries, query_field) if queries else None
    directory = loading.find(directory, text)
    peft_model, tokenizer = loading.load(directory)
    with progress_bars() as on_progress:
        result = bench_inference(
            peft_model,
            tokenizer,
            text,
            asked,
            settings,
            training_seconds=read_report(directory).get("seconds"),
            on_progress=on_progress,
            allow_other_prompt=loading.allow_other_prompt,
        )
    figures.write(result)
    show(result)


def whole_numbers(text: str | None) -> tuple[int, ...] | None:
    """The value of `--batch-sizes`."""
    try:
        return None if text is None else tuple(int(size) for size in text.split(","))
    except ValueError:
        raise ValueError(f"--batch-sizes takes whole numbers separated by commas, got '{text}'.") from None


def show(result: dict) -> None:
    console.print(latency_table(result))
    ratio, fit = result["ttft_ratio"], result["ttft_fit"]
    say(
        f"TTFT of one request, [BE] to full prompt: {ratio['measured']:.3f} measured, {ratio['predicted']:.3f} "
        f"predicted (Eq. 6, rho {fit['rho']:.3f}); NormFLOPs {result['norm_flops']:.3f} (Eq. 5)."
    )
    if result["training_seconds"] is not None:
        for mode, label in (("full", "the full prompt"), ("full_cached", "the cached full prompt")):
            requests = result["break_even_requests"][mode]
            after = "never" if requests is None else f"after {requests:,} requests"
            say(f"Against {label}, the {result['training_seconds']:.0f} s of compressing are paid {after}.")


def latency_table(result: dict) -> Table:
    table = Table(
        title=f"{result['prompt_tokens']} prompt tokens in {stand_in_length(result)}, answers of {result['new_tokens'] + 1} "
        f"tokens, median (quartiles) of {result['repeats']}"
    )
    for column in ("requests", "", "full prompt", "full, cached", "no prompt", "[BE]"):
        table.add_column(column, justify="right" if column else "left")
    for batch in result["batches"]:
        modes = [batch[mode] for mode in ("full", "full_cached", "no_prompt", "be")]
        for label, name in (("first token, ms", "ttft_ms"), ("then tokens/s", "decode_tokens_per_s")):
            cells = (quartile_cell(m[name]) for m in modes)
            table.add_row(str(batch["batch_size"]) if name == "ttft_ms" else "", label, *cells)
        table.add_row("", "KV cache, MB", *(f"{m['kv_bytes'] / 1e6:.2f}" for m in modes))
        table.add_section()
    return table


def quartile_cell(figure: dict[str, float]) -> str:
    """Median and quartiles, with as many decimals as the median needs to have three digits, and two at most."""
    digits = next((digits for digits, least in ((0, 100), (1, 10)) if figure["median"] >= least), 2)
    return f"{figure['median']:.{digits}f} ({figure['q1']:.{digits}f}-{figure['q3']:.{digits}f})"
