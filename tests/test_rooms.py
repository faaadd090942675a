"""The rooms of the package, and which of them may import which."""

import ast
from pathlib import Path

import peft_be


PACKAGE = Path(peft_be.__file__).parent
# A room imports from the levels before its own alone. docs/design.md draws them
LEVELS = (
    {"tuner", "machine", "files", "checks", "figures", "progress", "vllm_resolver"},
    {"prompting", "losses", "models", "recipe"},
    {"adapters", "data", "teacher"},
    {"training"},
    {"evaluation", "runs"},
    {"comparison", "serving"},
    {"cli"},
)


def imported_rooms(file: Path) -> set[str]:
    """The rooms that a file imports, wherever in the file it does."""
    package = ("peft_be", *file.relative_to(PACKAGE).parts[:-1])
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = (*start, *(node.module.split(".") if node.module else ()))
            rooms |= {[*module, alias.name][1] for alias in node.names if module[0] == "peft_be"}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("peft_be.")}
    return rooms


def test_every_room_has_a_level():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert sorted(name for level in LEVELS for name in level) == sorted(rooms - {"__init__"})


def test_no_room_imports_upwards():
    before = set()
    for level in LEVELS:
        for room in level:
            files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").is_file() else (PACKAGE / room).rglob("*.py")
            for file in files:
                # `from peft_be import __version__` imports no room
                found = imported_rooms(file) & {name for names in LEVELS for name in names}
                assert found <= before | {room}, (
                    f"{file.relative_to(PACKAGE)} imports {sorted(found - before - {room})}"
                )
        before |= level
