"""What `import peft_be` costs, prints and gives."""

import ast
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

import peft_be


ROOT = Path(__file__).parent.parent


def run(code, *arguments):
    """Run code in a fresh Python; returns what it printed on standard output. Nothing may be on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def run_before_peft(tmp_path_factory):
    """As `run`, in copies of one Python that has what PEFT imports, and not PEFT: a fresh one needs ten seconds for that."""
    context, folder = multiprocessing.get_context("forkserver"), tmp_path_factory.mktemp("outputs")
    context.set_forkserver_preload(["torch", "transformers.modeling_utils", "bitsandbytes"])

    def run(code, *arguments):
        files = [folder / name for name in ("out.txt", "err.txt")]
        begin = f"""
import os, sys
sys.argv = {["-c", *map(str, arguments)]!r}
for number, path in enumerate({[str(file) for file in files]!r}, 1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
assert "peft" not in sys.modules and "peft_be" not in sys.modules
"""
        process = context.Process(target=exec, args=(begin + code, {"__name__": "__main__"}))
        process.start()
        process.join(300)
        out, err = (file.read_text() for file in files)
        assert process.exitcode == 0 and not err, err
        return out.strip()

    return run


def test_the_import_loads_nothing_heavy_and_prints_nothing():
    code = "import sys, peft_be; dir(peft_be); print(sorted({'torch', 'peft', 'transformers', 'trl'} & sys.modules.keys()))"
    assert run(code) == "[]"


def test_every_public_name_is_there_for_completion_and_type_checkers():
    assert set(peft_be.__all__) <= set(dir(peft_be))
    for name in peft_be.__all__:
        assert getattr(peft_be, name).__name__ == name
    tree = ast.parse(Path(peft_be.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING")
    # `import x as x` is what a checker reads as "public"
    seen = {(alias.name, alias.asname): f"peft_be.{line.module}" for line in block.body for alias in line.names}
    assert {name for name, _ in seen} == set(peft_be.__all__)
    for (name, public), module in seen.items():
        assert name == public
        assert getattr(sys.modules[module], name) is getattr(peft_be, name)
    assert (Path(peft_be.__file__).parent / "py.typed").is_file()


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'BETokenizer'"):
        _ = peft_be.BETokenizer


LOAD_ADAPTER = """
import pickle, sys
import peft_be
assert "peft" not in sys.modules
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model.peft_config["default"]).__name__, hasattr(model.model.embed_tokens, "be_token_embedding"))
from peft import PeftConfig, PeftType
config = PeftConfig.from_pretrained(sys.argv[1])
assert type(config) is peft_be.BETokenConfig and config.peft_type is PeftType.BE_TOKEN
assert pickle.loads(pickle.dumps(config)) == config
open(sys.argv[2], "wb").write(pickle.dumps(config))
"""

UNPICKLE = """
import pickle, sys
config = pickle.load(open(sys.argv[1], "rb"))
from peft import PeftType
print(config.peft_type is PeftType.BE_TOKEN)
"""

TWO_THREADS = """
import sys, threading
errors, start = [], threading.Barrier(3)
def bring(name):
    start.wait()
    try:
        module = __import__(name)
        if name == "peft_be":
            module.BETokenConfig(be_token_ids=[7])
    except BaseException as error:
        errors.append(repr(error))
names = ["peft", "peft_be", "peft_be"]
threads = [threading.Thread(target=bring, args=[name]) for name in names]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
import peft_be
print(errors, PEFT_TYPE_TO_TUNER_MAPPING[PeftType.BE_TOKEN] is peft_be.BETokenModel)
"""

A_FAULT_IN_THE_HOOK = """
import sys
import peft_be
sys.modules["peft_be.tuner.layer"] = None  # as if it could not be imported
try:
    import peft
except ImportError as error:
    print("peft_be.tuner.layer" in str(error))
"""


def test_transformers_loads_an_adapter_after_the_import_alone(tmp_path, tiny_model, tiny_tokenizer, run_before_peft):
    tiny_model.save_pretrained(tmp_path / "base")
    tiny_model.name_or_path = str(tmp_path / "base")
    config = peft_be.BETokenConfig.for_tokenizer(tiny_tokenizer, len(tiny_tokenizer))
    from peft import get_peft_model

    get_peft_model(tiny_model, config).save_pretrained(tmp_path / "adapter")
    quiet = "from transformers.utils.logging import disable_progress_bar\ndisable_progress_bar()\n"
    assert run_before_peft(quiet + LOAD_ADAPTER, tmp_path / "adapter", tmp_path / "config.pkl") == "BETokenConfig True"
    assert run_before_peft("import peft_be\n" + UNPICKLE, tmp_path / "config.pkl") == "True"


def test_imports_in_several_threads(run_before_peft):
    assert run_before_peft("import peft_be\n" + TWO_THREADS) == "[] True"


def test_a_fault_in_the_registration_is_not_hidden(run_before_peft):
    assert run_before_peft(A_FAULT_IN_THE_HOOK) == "True"


@pytest.mark.parametrize("module", ["adapters.card", "cli.info", "prompting", "tuner.provenance"])
def test_any_room_may_be_imported_first(module, run_before_peft):
    """As a command does: PEFT is then imported in the middle of it, and asks for the rooms that extend it."""
    code = f"""
import warnings
warnings.simplefilter("ignore")
import peft_be.{module}, peft
from peft_be import BETokenConfig
print(BETokenConfig().peft_type.value, peft.PeftModel.save_pretrained.__wrapped__.__name__)
"""
    assert run_before_peft(code) == "BE_TOKEN save_pretrained"
