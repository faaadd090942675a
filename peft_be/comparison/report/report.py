"""The report of a comparison of methods: a markdown table, and one HTML file that opens without a network."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...evaluation.tasks import TASKS
from .charts import curve_sections, gap_bar, seed_of, trade_off
from .checks import check_names, check_table
from .rows import Cell, Row, is_number, leading_gap, report_columns, report_notes, report_rows, with_runs
from .verdict import verdict


ASSETS = Path(__file__).parents[2] / "assets" / "report"
PAGES = Environment(
    loader=FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
)


def markdown_table(results: dict) -> str:
    """
    The outcome of a comparison in words and as a markdown table, with notes and failed methods below.

    Args:
        results (`dict`): what the comparison found.

    Returns:
        `str`: markdown. Labels and errors are escaped.
    """
    rows = report_rows(results)
    shown = with_runs(rows)
    columns = report_columns(results, rows)
    table = [["Method", *(_markdown(column.heading) for column in columns)]]
    table.append(["---", *["---:"] * len(columns)])
    for row in shown:
        cells = [_told(row.cells[column.key]) for column in columns]
        table.append([f"{_markdown(row.label)} {row.mark}".strip(), *cells])
    lines = _lines(table) if shown else ["No method has a result."]
    notes = [f"- {mark} {_markdown(note)}" for mark, note in report_notes(results, rows).items()]
    notes += [f"- Failed: {_markdown(row.label)}: {_markdown(row.error)}" for row in rows if row.error]
    words = _markdown(verdict(shown, _prompt_tokens(results)))
    parts = ([words], lines, _lines(_checks(shown)), notes)
    return "\n\n".join("\n".join(part) for part in parts if any(part)) + "\n"


def _checks(rows: list[Row]) -> list[list[str]]:
    """The pass rates of all methods, a line for each check; nothing without checks."""
    methods = check_table(rows)
    lines = [[_markdown(name), *(_told(cells[i]) for _, cells in methods)] for i, name in enumerate(check_names(rows))]
    head = [["Check", *(_markdown(row.label) for row in rows)], ["---", *["---:"] * len(rows)]]
    return [*head, *lines] if lines else []


def _lines(table: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in table]


def _told(cell: Cell) -> str:
    return f"{cell.text} ({cell.spread})" if cell.spread else cell.text


def html_report(results: dict) -> str:
    """
    A comparison as one HTML page that contains all it needs. It is complete without scripts, which sort the table and choose
    a query.

    Args:
        results (`dict`): what the comparison found. Parts that are missing have no section.

    Returns:
        `str`: HTML. All texts of the results are escaped, and the page's own policy lets nothing but its own script run.
    """
    rows = report_rows(results)
    shown = with_runs(rows)
    tokens = _prompt_tokens(results)
    script, style = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    return PAGES.get_template("page.html").render(
        title=f"What can stand in for {'a prompt' if tokens is None else f'{tokens:,} prompt tokens'}?",
        verdict=verdict(shown, tokens),
        facts=_facts(results),
        columns=report_columns(results, rows),
        rows=shown,
        check_names=check_names(shown),
        check_table=check_table(shown),
        failed=[row for row in rows if row.error],
        notes=report_notes(results, rows),
        bar=gap_bar,
        lead=leading_gap(rows),
        trade_off=trade_off(shown),
        sections=curve_sections(shown),
        queries=_queries(results, shown),
        command=_command(results.get("settings") or {}),
        tables=_tables(results),
        has_task=any(row.cells["task"].value is not None for row in rows),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _prompt_tokens(results: dict) -> float | None:
    tokens = (results.get("prompt") or {}).get("tokens")
    return tokens if is_number(tokens) else None


def _facts(results: dict) -> list[tuple[str, str]]:
    """The setting in a few words, without what is not known."""
    prompt, counts, budget = (results.get(key) or {} for key in ("prompt", "num_queries", "budget"))
    limits = [
        f"{budget['max_steps']:,} steps" if is_number(budget.get("max_steps")) else None,
        f"{budget['max_minutes']:g} min" if is_number(budget.get("max_minutes")) else None,
    ]
    facts = {
        "Model": results.get("model"),
        "Prompt": prompt.get("name"),
        "Test queries": _scored(counts.get("test"), len(results.get("left_out") or [])),
        "Training queries": counts.get("train"),
        "Budget of a run": " or ".join(filter(None, limits)),
        "Seeds": ", ".join(map(str, results.get("seeds") or [])),
        "Task": results.get("task"),
    }
    return _known(facts)


def _scored(count: int | None, left_out: int) -> str | int | None:
    """The number of test queries, and how many were left out."""
    if count is None or not left_out:
        return count
    return f"{count:,} ({left_out:,} more stand{'s' if left_out == 1 else ''} in the prompt)"


def _tables(results: dict) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the header does not tell of the settings, the machine and the versions, as far as known."""
    hashes = results.get("settings") or {}
    settings = {
        "Prompt, tokens": _prompt_tokens(results),
        "Prompt, SHA-256": hashes.get("prompt"),
        "Queries, SHA-256": hashes.get("queries"),
        "Base model, SHA-256": hashes.get("base_sha256"),
        "Validation queries": (results.get("num_queries") or {}).get("validation"),
        "Longest answer, tokens": results.get("max_answer_length"),
        "Answer tokens scored": results.get("num_answer_tokens"),
    }
    tables = {"Settings": settings, "Machine": results.get("machine") or {}, "Versions": results.get("versions") or {}}
    return [(title, entries) for title, table in tables.items() if (entries := _known(table))]


def _known(table: dict) -> list[tuple[str, str]]:
    return [
        (key, f"{value:,}" if isinstance(value, int) else str(value))
        for key, value in table.items()
        if value not in (None, "")
    ]


def _command(settings: dict) -> str | None:
    """The command that compares the same methods again; words in capitals are files. `None` if the seeds are no series."""
    methods, seeds = settings.get("methods"), settings.get("seeds")
    if not methods or not seeds or seeds != [*range(seeds[0], seeds[0] + len(seeds))]:
        return None
    task = (settings.get("task") or {}).get("name")
    options = {
        "methods": ",".join(methods),
        "seed": seeds[0],
        "seeds": len(seeds),
        "task": next((name for name, kind in TASKS.items() if kind.__name__ == task), task),
        "task-items": task and "ITEMS",
        "checks": "CHECKS" if settings.get("checks") else None,
    }
    for name in ("model", "dtype", "max_steps", "max_minutes", "max_answer_length"):
        options[name.replace("_", "-")] = settings.get(name)
    given = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None)
    return f"peft-be compare --prompt PROMPT --queries QUERIES [--test-queries QUERIES] --output FOLDER {given}"


def _queries(results: dict, rows: list[Row]) -> list[dict]:
    """Each query with the answers of the full prompt and of all methods; the first run comes first."""
    full_answers = results.get("full_answers") or []
    queries = []
    for i, query in enumerate(results.get("queries") or []):
        cards = []
        for row in rows:
            answers = [
                {"text": run["answers"][i], "source": _source(run, i)}
                for run in row.runs
                if i < len(run.get("answers") or [])
            ]
            if answers and row.name != "full":
                cards.append({"row": row, "answers": answers})
        full = full_answers[i] if i < len(full_answers) else None
        if cards or full is not None:
            queries.append({"number": i, "text": query, "full": full, "cards": cards})
    return queries


def _source(run: dict, query: int) -> str:
    """A run's seed and its KL for a query, as far as known."""
    kl = (run.get("query_kl") or [])[query : query + 1]
    parts = [] if run.get("seed") is None else [seed_of(run)]
    return ", ".join(parts + [f"KL {value:.3f}" for value in kl if is_number(value)])


def _markdown(text: str) -> str:
    """Text in one line of a table, without a meaning in markdown or HTML."""
    return re.sub(r"([\\`*_|~<>\[\]])", r"\\\1", " ".join(str(text).split())).replace("&", "&amp;")
