"""
The shape of a package's code: the table of docs/design.md.

python research/house.py peft_be/tuner peft_be --tests tests
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import tokenize
from pathlib import Path


SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstring_lines(node: ast.AST) -> set[int]:
    """The lines of a node's docstring, counted from 1."""
    if not isinstance(node, DEFINITIONS) or ast.get_docstring(node, clean=False) is None:
        return set()
    return set(range(node.body[0].lineno, node.body[0].end_lineno + 1))


def measure(files: list[Path]) -> dict:
    """
    Count lines of Python files.

    Args:
        files (`list[Path]`): the files.

    Returns:
        `dict`: `files`, `lines` (all of them), `functions` (lines of each function without its docstring), and the lines of `code`,
            of `doc` (docstrings) and of `comment` (with a comment on them).
    """
    functions, counts = [], dict.fromkeys(("lines", "code", "doc", "comment"), 0)
    for file in files:
        text = file.read_text(encoding="utf-8")
        doc, code, comment = set(), set(), set()
        for node in ast.walk(ast.parse(text)):
            doc |= docstring_lines(node)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                functions.append(node.end_lineno - node.lineno + 1 - len(docstring_lines(node)))
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                comment.add(token.start[0])
            elif token.type not in SKIPPED:
                code |= set(range(token.start[0], token.end[0] + 1))
        counts["lines"] += len(text.splitlines())
        counts["code"] += len(code - doc)
        counts["doc"] += len(doc)
        counts["comment"] += len(comment)
    return {"files": len(files), "functions": functions, **counts}


def table_line(folder: Path, tests: list[Path]) -> str:
    """A folder's line of the table. Tests are measured in lines a line of the folder's."""
    found = measure(sorted(folder.rglob("*.py")))
    held = sum(len(file.read_text(encoding="utf-8").splitlines()) for path in tests for file in path.rglob("*.py"))
    cells = (
        f"`{folder}`",
        f"{found['files']} / {found['lines']:,}",
        f"{statistics.median(found['functions']):.0f} / {max(found['functions'])}",
        f"{found['doc'] / found['code']:.2f}",
        f"{found['comment'] / found['code']:.3f}",
        f"{held / found['lines']:.2f} a line" if tests else "",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="Folders of Python files, a line of the table each.")
    parser.add_argument("--tests", nargs="*", type=Path, default=[], help="Folders of the tests of the last one.")
    arguments = parser.parse_args()
    print("| | files / lines | function median / max | doc | comment | tests |\n|---|---|---|---|---|---|")
    for folder in arguments.folders:
        print(table_line(folder, arguments.tests if folder == arguments.folders[-1] else []))


if __name__ == "__main__":
    main()
