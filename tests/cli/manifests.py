"""Manifests for `compress-many`, and its options for a run of a second."""

import json

from .conftest import PROMPT, QUERIES


def write_manifest(folder, *extra):
    (folder / "p.txt").write_text(PROMPT)
    (folder / "q.txt").write_text("\n".join(QUERIES))
    lines = [{"name": name, "prompt": "p.txt", "queries": "q.txt"} for name in ("one", "two")]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *extra]))
    return manifest


def options(job, tiny_dir):
    return ["--output", job.folder / "many", "--model", tiny_dir, "--max-answer-length", 6, "--max-steps", 2]
