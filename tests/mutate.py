"""
Breaks the code in small ways, one at a time, and checks whether its tests notice: `python tests/mutate.py --help`.

Each mutant is a copy of one module with one change: a comparison turned round, a number one larger, a branch that is always
or never taken, a statement left out. It is tried in a fork that has torch and transformers loaded already, on a
copy of the repository, with the tests next to the module. Mutants that no test notices are printed: write the test, or see
that the change means nothing.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).parent.parent
# What is broken, and the tests that should notice
TARGETS = {
    "peft_be/losses.py": "tests/test_losses.py",
    "peft_be/training/ggt.py": "tests/training/test_ggt.py",
    "peft_be/tuner": "tests/tuner",
    "peft_be/prompting": "tests/prompting",
}
COMPARISONS = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
OPERATORS |= {ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.Mod: ast.Mult, ast.Pow: ast.Mult}


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """What a node may become, and what that is called. None leaves a statement out."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            other = copy.deepcopy(node)
            other.ops[i] = COMPARISONS[type(operator)]()
            yield "comparison", other
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield "operator", ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield "and/or", ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
        for i in range(len(node.values)):
            yield "operand left out", ast.BoolOp(node.op, node.values[:i] + node.values[i + 1 :])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield "sign", node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield "constant", ast.Constant(node.value + 1)
    elif isinstance(node, (ast.If, ast.IfExp)):
        for value in (True, False):
            other = copy.copy(node)
            other.test = ast.Constant(value)
            yield f"if {value}", other
    elif isinstance(node, ast.Call) and node.keywords:
        for i, keyword in enumerate(node.keywords):
            other = copy.copy(node)
            other.keywords = node.keywords[:i] + node.keywords[i + 1 :]
            yield f"without {keyword.arg}", other
    elif isinstance(node, ast.Return) and node.value is not None:
        yield "returns None", ast.Return(ast.Constant(None))
    elif isinstance(node, (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Delete)):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield "left out", ast.Pass()


class _Replace(ast.NodeTransformer):
    def __init__(self, node, other):
        self.node, self.other = node, other

    def visit(self, node):
        return ast.copy_location(self.other, node) if node is self.node else self.generic_visit(node)


def places(tree: ast.Module) -> list[ast.AST]:
    """The nodes in functions and classes, but for annotations, which mean nothing when the code runs."""
    inside = [node for top in tree.body if isinstance(top, (ast.FunctionDef, ast.ClassDef)) for node in ast.walk(top)]
    notes = [getattr(node, name, None) for node in inside for name in ("annotation", "returns")]
    silent = {id(node) for note in notes if note is not None for node in ast.walk(note)}
    return [node for node in inside if id(node) not in silent]


def sites(source: str) -> list[tuple[int, int]]:
    """What `mutant` takes: the number of a node, and of a change to it."""
    return [(i, j) for i, node in enumerate(places(ast.parse(source))) for j, _ in enumerate(changes(node))]


def mutant(source: str, site: tuple[int, int]) -> tuple[str, str]:
    """What one change is, and the source with it."""
    tree = ast.parse(source)
    node = places(tree)[site[0]]
    name, other = list(changes(node))[site[1]]
    label = f"{node.lineno}: {name}: {ast.unparse(node).splitlines()[0][:100]}"
    return label, ast.unparse(ast.fix_missing_locations(_Replace(node, other).visit(tree)))


def run_tests(root: Path, tests: list[str], seconds: int) -> int:
    """The exit code of pytest in a fork; the signal's number, negative, where the time was up."""
    child = os.fork()
    if child == 0:
        signal.alarm(seconds)
        os.dup2(os.open(root / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        import pytest

        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--basetemp", str(root / "tmp"), *tests]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help=f"what is broken (default: {' '.join(TARGETS)})")
    parser.add_argument("--count", type=int, default=25, help="mutants of a module, drawn by lot (default: 25)")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.dont_write_bytecode = True  # a mutant may have the size and the second of the one before
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import transformers  # noqa: F401
    import trl  # noqa: F401

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "repository"
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        os.chdir(root)
        sys.path.insert(0, str(root))
        seconds: dict[str, int] = {}  # for each folder of tests
        for target in arguments.targets or TARGETS:
            folder = next(tests for name, tests in TARGETS.items() if target.startswith(name))
            if folder not in seconds:
                start = os.times()
                code = run_tests(root, [folder], 3600)
                if code != 0:
                    output = (root / "output.txt").read_text()[-3000:]
                    sys.exit(f"The tests of {target} fail without a mutant:\n{output}")
                seconds[folder] = int(30 + 3 * (os.times().elapsed - start.elapsed))
            for path in [root / target] if target.endswith(".py") else sorted((root / target).glob("*.py")):
                intact, survivors = path.read_text(encoding="utf-8"), []
                # The nearest first: the first failure ends the run
                nearest = sorted(
                    str(test.relative_to(root)) for test in (root / folder).glob(f"test_*{path.stem}*.py")
                )
                every = sites(intact)
                drawn = random.Random(f"{arguments.seed} {path.name}").sample(every, min(arguments.count, len(every)))
                for site in drawn:
                    label, source = mutant(intact, site)
                    path.write_text(source, encoding="utf-8")
                    if run_tests(root, [*nearest, folder], seconds[folder]) == 0:
                        survivors.append(label)
                        print(f"  survived: {path.name}:{label}", flush=True)
                path.write_text(intact, encoding="utf-8")
                name = path.relative_to(root)
                noticed = f"{len(drawn) - len(survivors)} of {len(drawn)} noticed"
                print(f"{name}: {noticed} ({len(every)} are possible)", flush=True)


if __name__ == "__main__":
    main()
