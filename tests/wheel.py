"""
Installs a wheel into a fresh environment outside of the source tree, and compresses a prompt there: a file that the package
needs and does not carry shows. The dependencies are those of the Python that runs this.

python tests/wheel.py dist/peft_be-*.whl
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent

QUICK_START = """
import sys, warnings
import peft_be
from peft_be.evaluation.refusals import load_requests

assert peft_be.__file__.startswith(sys.prefix), f"{peft_be.__file__} is not the installed package"
warnings.simplefilter("ignore")
prompt = peft_be.load_prompt(sys.argv[1])
queries = ["What did you see on day %d?" % day for day in range(8)]
# With reconstruction, which reads the [AE] row that the package ships
peft_be.compress_prompt(prompt, queries, "adapter", kd_weight=0.9, max_steps=2, max_answer_length=4)
model, tokenizer = peft_be.load_adapter("adapter")
renderer = peft_be.PromptRenderer.for_adapter(model.peft_config["default"], tokenizer)
inputs = renderer.apply_chat_template([{"role": "user", "content": "Who are you?"}])
assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]
assert load_requests()
"""


def check(wheel: Path, work: Path) -> None:
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("peft_be/")}
    files = (path for path in (ROOT / "peft_be").rglob("*") if path.is_file() and path.suffix != ".pyc")
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    assert carried == expected, f"the wheel and the source differ in {sorted(carried ^ expected)}"
    environment = work / "venv"
    venv.create(environment, with_pip=True)
    binaries = environment / ("Scripts" if os.name == "nt" else "bin")
    run = {"cwd": work, "check": True, "env": {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}}
    subprocess.run([binaries / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], **run)
    own = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})["purelib"]
    # A path that a .pth file names is searched last, and .pth files in it, such as that of an editable install, are not read
    (Path(own) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run([binaries / "peft-be", "--version"], **run)
    prompt = ROOT / "examples" / "redbeard" / "prompt.json"
    subprocess.run([binaries / "python", "-c", QUICK_START, prompt], **run)
    subprocess.run([binaries / "peft-be", "info", "adapter"], **run)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        check(Path(sys.argv[1]).resolve(), Path(folder))
