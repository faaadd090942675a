"""Files of JSON lines, as the data and the manifests are."""

from pathlib import Path

from peft_be.files import read_json_lines


def json_lines(path: Path) -> list[dict]:
    """The records of a file of JSON lines."""
    return [record for _, record in read_json_lines(path, "file")]
