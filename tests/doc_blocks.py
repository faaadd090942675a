"""The pages of the documentation, their code blocks, and where these can run."""

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).parents[1]
PAGES = [path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]
_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SHELL, PYTHON = ("", "bash", "sh"), ("python", "py")


class Block(NamedTuple):
    page: str
    language: str
    code: str


def blocks(*languages: str) -> list[Block]:
    """The code blocks of all pages in some languages, in the order in which they stand."""
    found = []
    for page in PAGES:
        for indent, language, code in _FENCED.findall(page.read_text()):
            if language in languages:
                code = "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
                found.append(Block(str(page.relative_to(ROOT)), language, code))
    return found


def commands(code: str) -> list[str]:
    """The commands of a shell block, each in a line, without comments and without those that are only sketched."""
    lines, quote = [], ""
    for line in code.replace("\\\n", " ").splitlines():
        # A quoted text may go over several lines
        quote = f"{quote}\n{line}" if quote else line
        if quote.count("'") % 2 == 0:
            lines.append(quote.strip())
            quote = ""
    return [line for line in lines if line and not line.startswith("#") and "..." not in line]


def environment(folder: Path) -> dict[str, str]:
    """Of a process that finds the caches in a folder, and the package and its command in this checkout."""
    return os.environ | {
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PEFT_BE_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def save_in_hub_cache(model: str, name: str, folder: Path) -> None:
    """Let `from_pretrained(name)` find a model's folder without a network."""
    repository = folder / "hub" / f"models--{name.replace('/', '--')}"
    for part in ("snapshots", "refs"):
        (repository / part).mkdir(parents=True)
    (repository / "snapshots" / (40 * "0")).symlink_to(model)
    (repository / "refs" / "main").write_text(40 * "0")
