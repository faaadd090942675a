"""The report of a comparison of methods: a markdown table, and one HTML file that opens without a network."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .charts import curve_sections, gap_bar, query_strips, seed_of, trade_off
from .rows import Row, is_number, report_columns, report_notes, report_rows, with_runs


ASSETS = Path(__file__).parents[2] / "assets" / "report"
PAGES = Environment(
    loader=FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
)


def markdown_table(results: dict) -> str:
    """
    The headline figures of a comparison as a markdown table, with notes and failed methods below.

    Args:
        results (`dict`): what the comparison found.

    Returns:
        `str`: markdown. Labels and errors are escaped.
    """
    rows = report_rows(results)
    columns = report_columns(results, rows)
    table = [["Method", *(_markdown(column.heading) for column in columns)]]
    table.append(["---", *["---:"] * len(columns)])
    for row in with_runs(rows):
        cells = [row.cells[column.key] for column in columns]
        texts = [f"{cell.text} ({cell.spread})" if cell.spread else cell.text for cell in cells]
        table.append([_markdown(row.label), *texts])
    lines = ["| " + " | ".join(cells) + " |" for cells in table] if len(table) > 2 else ["No method has a result."]
    notes = [f"- {_markdown(note)}" for note in report_notes(results, rows)]
    notes += [f"- Failed: {_markdown(row.label)}: {_markdown(row.error)}" for row in rows if row.error]
    return "\n".join(lines + ([""] + notes if notes else [])) + "\n"


def html_report(results: dict) -> str:
    """
    A comparison as one HTML page that contains all it needs. It is complete without scripts; these sort the table and choose a
    query.

    Args:
        results (`dict`): what the comparison found. Parts that are missing have no section.

    Returns:
        `str`: HTML. All texts of the results are escaped, and the page's own policy lets nothing but its own script run.
    """
    rows = report_rows(results)
    shown = with_runs(rows)
    script, style = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    return PAGES.get_template("page.html").render(
        title=_title(results),
        facts=_facts(results),
        columns=report_columns(results, rows),
        rows=shown,
        failed=[row for row in rows if row.error],
        notes=report_notes(results, rows),
        bar=gap_bar,
        trade_off=trade_off(shown),
        sections=curve_sections(shown),
        strips=query_strips(results, shown),
        queries=_queries(results, shown),
        tables=_tables(results),
        has_task=any(row.cells["task"].value is not None for row in rows),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _title(results: dict) -> str:
    tokens = (results.get("prompt") or {}).get("tokens")
    return (
        f"What can stand in for {tokens:,} prompt tokens?" if is_number(tokens) else "What can stand in for a prompt?"
    )


def _facts(results: dict) -> list[tuple[str, str]]:
    """The setting in a few words, without what is not known."""
    prompt, counts, budget = (results.get(key) or {} for key in ("prompt", "num_queries", "budget"))
    answers = results.get("num_answer_tokens")
    limits = [
        f"{budget['max_steps']:,} steps" if is_number(budget.get("max_steps")) else None,
        f"{budget['max_minutes']:g} min" if is_number(budget.get("max_minutes")) else None,
    ]
    facts = {
        "Model": results.get("model"),
        "Prompt": prompt.get("name"),
        "Test queries": f"{counts['test']:,}" if is_number(counts.get("test")) else None,
        "Answer tokens scored": f"{answers:,}" if is_number(answers) else None,
        "Training queries": f"{counts['train']:,}" if is_number(counts.get("train")) else None,
        "Budget of a run": " or ".join(filter(None, limits)),
        "Seeds": ", ".join(map(str, results.get("seeds") or [])),
        "Task": results.get("task"),
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _tables(results: dict) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings, machine and versions, each with the parts that are known."""
    counts, budget = results.get("num_queries") or {}, results.get("budget") or {}
    settings = {
        "model": results.get("model"),
        **{f"prompt {key}": value for key, value in (results.get("prompt") or {}).items()},
        **{f"{key} queries": value for key, value in counts.items()},
        "longest answer, tokens": results.get("max_answer_length"),
        "answer tokens scored": results.get("num_answer_tokens"),
        **{key.replace("_", " "): value for key, value in budget.items()},
        "seeds": ", ".join(map(str, results.get("seeds") or [])),
        "task": results.get("task"),
    }
    tables = {"Settings": settings, "Machine": results.get("machine") or {}, "Versions": results.get("versions") or {}}
    shown = {
        title: [(key, str(value)) for key, value in table.items() if value not in (None, "")]
        for title, table in tables.items()
    }
    return [(title, entries) for title, entries in shown.items() if entries]


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
