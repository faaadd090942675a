"""
A hook of MkDocs: the pages that are made from the code, and links that lead somewhere on GitHub and on the site.

On GitHub a page of `docs/` links to `../CHANGELOG.md` or `../research/log.md`; a site has nothing outside its folder. So these
files become pages of the site, the README its first one, and links to them are rewritten. Links to anything else outside
`docs/`, such as a script, become plain text.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

import typer
from mkdocs.structure.files import File

from peft_be.cli.main import app


ROOT = Path(__file__).parents[2]
# What the site shows of the repository besides docs/
OUTSIDE = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "research/README.md",
    "research/log.md",
    "research/images/*",
    "examples/*/README.md",
]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
# The groups of the reference, in the order in which one meets them
GROUPS = {
    "Jobs": [
        "compress_prompt",
        "CompressConfig",
        "Compression",
        "compress_prompts",
        "PromptJob",
        "PromptResult",
        "QuerySplits",
        "synthesize_queries",
        "SynthesizedQueries",
        "pretrain_ae",
        "PretrainAEConfig",
        "PretrainedAE",
    ],
    "Loading": ["load_model", "load_adapter", "load_adapters", "load_prompt", "load_queries", "as_queries"],
    "Rendering": ["PromptRenderer"],
    "Evaluation": [
        "evaluate_fidelity",
        "evaluate_reconstruction",
        "load_checks",
        "check_scores",
        "AnswerCheck",
        "evaluate_refusals",
        "audit_leakage",
        "AuditConfig",
        "bench_inference",
        "BenchConfig",
    ],
    "Serving and sharing": [
        "export_merged",
        "export_gguf",
        "export_lora",
        "export_lora_gguf",
        "import_lora",
        "PromptEmbeds",
        "PromptDirectory",
        "strip_special_tokens",
        "push_adapters",
    ],
    "The tuner": ["BETokenConfig", "BETokenModel"],
    "Training": ["BEDistillConfig", "BEDistillTrainer", "ManyPromptsTrainer", "AEConfig", "AETrainer"],
}


def site_path(repository_path: str) -> str:
    """Where a file of the repository is on the site."""
    if repository_path == "README.md":
        return "index.md"
    return repository_path.removeprefix("docs/")


def repository_path(src_uri: str) -> str:
    """The inverse of [`site_path`]."""
    if src_uri == "index.md":
        return "README.md"
    return src_uri if (ROOT / src_uri).exists() and not (ROOT / "docs" / src_uri).exists() else f"docs/{src_uri}"


def public_names() -> list[str]:
    """The names in `peft_be.__all__`, read without importing the package."""
    tree = ast.parse((ROOT / "peft_be" / "__init__.py").read_text(encoding="utf-8"))
    names = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "_LAZY")
    return list(ast.literal_eval(names))


def python_page() -> str:
    """The reference of every public name; `mkdocstrings` fills it in."""
    grouped = [name for names in GROUPS.values() for name in names]
    if sorted(grouped) != sorted(public_names()):
        differing = sorted(set(grouped) ^ set(public_names()))
        raise ValueError(f"docs/_hooks/pages.py groups other names than peft_be has: {', '.join(differing)}.")
    parts = ["# Python\n\nEvery public name of `peft_be`, from its docstring.\n"]
    for title, names in GROUPS.items():
        parts += [f"## {title}\n", *(f"::: peft_be.{name}\n" for name in names)]
    return "\n".join(parts)


def parameter_row(parameter, context) -> str | None:
    """One line of a command's table."""
    record = parameter.get_help_record(context)
    if record is None or "--help" in parameter.opts:
        return None
    name, text = record
    text, _, notes = text.removesuffix("]").partition("  [") if text.endswith("]") else (text, "", "")
    notes = re.sub(r"^default: \(?([^;)]+)\)?", r"\1", notes)
    notes, text = notes.replace("|", r"\|"), text.replace("|", r"\|")  # which would end the cell
    return f"| `{name}` | {notes} | {text} |".replace("\n", " ")


def command_section(name: str, command, context) -> str:
    context = command.make_context(name, [], parent=context, resilient_parsing=True)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    rows = [row for row in (parameter_row(parameter, context) for parameter in command.params) if row]
    table = ["| option | default | |", "|---|---|---|", *rows] if rows else []
    return "\n".join([f"## {name}\n", f"{command.help}\n", f"```text\n{usage}\n```\n", *table, ""])


def commands_page() -> str:
    """The reference of every command, from the command line's own help."""
    group = typer.main.get_command(app)
    context = group.make_context("peft-be", [], resilient_parsing=True)
    intro = "# Commands\n\nEvery command and option, as in `peft-be COMMAND --help`. The how-to pages say when to use which.\n"
    return "\n".join([intro, *(command_section(name, command, context) for name, command in group.commands.items())])


def hints() -> str:
    """What the glossary says of the terms in capitals, shown under the pointer wherever they stand."""
    rows = re.findall(
        r"^\| \*\*\[?(BE|AE|KL|GGT|JSD|GGUF|AMX|NormFLOPs)\]?\*\* \| (.+?) \|$",
        (ROOT / "docs/glossary.md").read_text(),
        re.MULTILINE,
    )
    return "\n".join(f"*[{term}]: {meaning}" for term, meaning in rows)


def on_files(files, config):
    made = {"reference/python.md": python_page(), "reference/commands.md": commands_page()}
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            made[site_path(path.relative_to(ROOT).as_posix())] = path.read_bytes()
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    here = repository_path(page.file.src_uri)

    def rewritten(match: re.Match) -> str:
        image, text, target = match.groups()
        name, hash_, anchor = target.partition("#")
        if not name or re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), name))
        uri = site_path(path)
        if not files.get_file_from_path(uri):
            return match[0] if path.startswith("docs/") and not (ROOT / path).is_dir() else text
        link = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
        return f"{image}[{text}]({link}{hash_}{anchor})"

    parts = FENCE.split(markdown)
    text = "".join(part if part.startswith("```") else LINK.sub(rewritten, part) for part in parts)
    if page.file.src_uri == "glossary.md":
        return text
    glossary = posixpath.relpath("glossary.md", posixpath.dirname(page.file.src_uri) or ".")
    return f"{text}\n\n---\n\n[BE], P, the gap: the words are in the [glossary]({glossary}).\n\n{hints()}\n"
