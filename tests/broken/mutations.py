"""Ways in which a file goes wrong on its way: cut off, overwritten, of other types, made to harm."""

from __future__ import annotations

import itertools
import json
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path


Mutation = tuple[str, Callable[[Path], None]]


def write(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def of_any_file(content: bytes, rng: random.Random, cuts: int = 6) -> Iterator[Mutation]:
    """What can happen to the bytes of a file, whatever its format."""
    yield "missing", Path.unlink
    yield "empty", write(b"")
    yield "a folder", replace_by_folder
    yield "a link to itself", link_to_itself
    yield "NUL bytes", write(b"\0" * len(content))
    yield "noise", write(rng.randbytes(len(content)))
    yield "UTF-16", write("\ufeffnot what it was".encode("utf-16"))
    yield "a pickle", write(pickle.dumps({"weight": [0.0]}))
    yield "an HTML page", write(b"<!DOCTYPE html><html><body>404 Not Found</body></html>")
    yield "a Git LFS pointer", write(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for at in sorted(rng.sample(range(1, len(content) - 1), min(cuts, len(content) - 2))):
        yield f"cut off after {at} bytes", write(content[:at])


def of_json(value, rng: random.Random, huge: int = 10**12) -> Iterator[Mutation]:
    """What can happen to a JSON file: of another type as a whole, and field by field, where a number may become `huge`."""

    def dumped(other) -> Callable[[Path], None]:
        return write(json.dumps(other).encode())

    for name, other in {"null": None, "a list": [], "a text": "text", "a number": 7, "an empty object": {}}.items():
        if type(other) is not type(value) or other != value:
            yield f"JSON: {name}", dumped(other)
    yield "JSON: nested 100,000 deep", write(b"[" * 100_000 + b"]" * 100_000)
    yield "JSON: a number of 10,000 digits", write(b'{"num_be_tokens": ' + b"9" * 10_000 + b"}")
    yield "JSON: two objects", write(json.dumps(value).encode() * 2)
    yield "JSON: a comma too many", write(json.dumps(value).encode()[:-1] + b",}")
    others = [None, [], {}, "x", -1, huge, 1.5, True, "../../etc/passwd", "\ud800", [[1]], {"a": None}]
    if isinstance(value, dict):
        for key in value:
            for other in rng.sample(others, 4):
                if other != value[key]:
                    yield f"JSON: {key} = {ascii(other)}", dumped({**value, key: other})
    if isinstance(value, list):
        for at, item in enumerate(value):
            for other in (None, 7, [], "x", {}):
                yield f"JSON: item {at} = {other}", dumped([*value[:at], other, *value[at + 1 :]])
            for key, other in itertools.product(item, (None, 7, [], {}, [[1]])):
                changed = {**item, key: other}
                yield f"JSON: item {at}: {key} = {other}", dumped([*value[:at], changed, *value[at + 1 :]])


def of_safetensors(content: bytes, rng: random.Random) -> Iterator[Mutation]:
    """What can happen to a safetensors file: lengths, offsets, types, shapes, names and numbers."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = [name for name in header if name != "__metadata__"]

    def made(other: dict, numbers: bytes = data) -> Callable[[Path], None]:
        text = json.dumps(other).encode()
        return write(struct.pack("<Q", len(text)) + text + numbers)

    for length in (0, 1, size - 1, size + 1, 2**24, 2**40, 2**63, 2**64 - 1):
        yield f"header of {length} bytes", write(struct.pack("<Q", length) + content[8:])
    yield "no tensor", made({}, b"")
    yield "no numbers", made(header, b"")
    yield "numbers left over", made(header, data + b"\0" * 16)
    for name in names:
        entry = header[name]
        for dtype in ("F16", "BF16", "F64", "I32", "U8", "BOOL", "F8_E4M3", "X9", None, 5):
            yield f"dtype {dtype}", made({**header, name: {**entry, "dtype": dtype}})
        for shape in ([], [0], [-1, 4], [2**62, 2**62], [1, 1], entry["shape"][::-1], "x", None):
            if shape != entry["shape"]:
                yield f"shape {shape}", made({**header, name: {**entry, "shape": shape}})
        for offsets in ([0, 0], [0, 2**40], [-8, 8], [8, 0], [0], None, ["a", "b"]):
            yield f"offsets {offsets}", made({**header, name: {**entry, "data_offsets": offsets}})
        for other in ("", "weight", "../../weight", name + ".1", "base_model.model.lm_head.weight", name.upper()):
            yield f"called {other!r}", made({**{k: v for k, v in header.items() if k != name}, other: entry})
        spare = {"dtype": "F32", "shape": [4], "data_offsets": [len(data), len(data) + 16]}
        for other in ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "extra", "lm_head.weight"):
            yield f"with a tensor {other}", made({**header, other: spare}, data + struct.pack("<4f", 1, 2, 3, 4))
        for label, number in (("NaN", float("nan")), ("inf", float("inf")), ("-inf", float("-inf"))):
            at = 4 * rng.randrange(len(data) // 4)
            yield f"a number that is {label}", made(header, data[:at] + struct.pack("<f", number) + data[at + 4 :])


def of_lines(lines: list[str], rng: random.Random) -> Iterator[Mutation]:
    """What can happen to a file with one JSON object a line."""
    whole = [line.encode() for line in lines]

    def with_line(line: bytes) -> Callable[[Path], None]:
        at = rng.randrange(len(whole) + 1)
        return write(b"\n".join([*whole[:at], line, *whole[at:]]) + b"\n")

    first = json.loads(lines[0])
    for name, line in {
        "half a line": whole[0][: len(whole[0]) // 2],
        "a list": b"[]",
        "a text": b'"text"',
        "null": b"null",
        "a number": b"7",
        "an empty object": b"{}",
        "plain text": b"What is this?",
        "a CSV line": b"a,b,c",
        "Latin-1": '{"query": "caf\xe9"}'.encode("latin-1"),
        "NUL": b'{"query": "a\0b"}',
        "nested 100,000 deep": b"[" * 100_000,
        "10 MB without an end": b'{"query": "' + b"x" * 10_000_000,
        "single quotes": str(first).encode(),
        "NaN": b'{"query": NaN}',
        "two objects": whole[0] + whole[0],
    }.items():
        yield f"line: {name}", with_line(line)
    for key in first:
        for other in (None, True, [], {}, "", " ", [[]], [7], [{"role": "user"}], {"a": 1}):
            yield f"line: {key} = {ascii(other)}", with_line(json.dumps({**first, key: other}).encode())
        yield f"line: no {key}", with_line(json.dumps({k: v for k, v in first.items() if k != key}).encode())


def of_gguf(content: bytes, rng: random.Random) -> Iterator[Mutation]:
    """What can happen to the head of a GGUF file: magic, version, counts, the length of its first key."""

    def patched(at: int, number: bytes) -> Callable[[Path], None]:
        return write(content[:at] + number + content[at + len(number) :])

    yield "another magic", patched(0, b"GGML")
    for version in (0, 1, 4, 2**24, 2**32 - 1):
        yield f"version {version}", patched(4, struct.pack("<I", version))
    for count in (0, 1, 2**32, 2**63, 2**64 - 1):
        yield f"{count} tensors", patched(8, struct.pack("<Q", count))
        yield f"{count} keys", patched(16, struct.pack("<Q", count))
        yield f"a key of {count} bytes", patched(24, struct.pack("<Q", count))
    for cut in (0.2, 0.5, 0.9, 0.999):
        yield f"cut off at {cut}", write(content[: int(cut * len(content))])


def of_bytes(start: int, end: int, content: bytes, rng: random.Random, count: int) -> Iterator[Mutation]:
    """Single bytes between `start` and `end` that have become others."""
    for at in sorted(rng.sample(range(start, end), count)):
        other = (content[at] + rng.randrange(1, 256)) % 256
        yield f"byte {at} is {other}", write(content[:at] + bytes([other]) + content[at + 1 :])


def of_csv(content: bytes, rng: random.Random) -> Iterator[Mutation]:
    """What can happen to a CSV file with a column `query`."""
    for name, other in {
        "no known column": b"text,topic\na,b\n",
        "no header": b"What is this?,sea\nAnd that?,sea\n",
        "only a header": b"query,topic\n",
        "two columns called query": b"query,query\na,b\nc,d\n",
        "an empty cell": content + b",sea\n",
        "a cell too many": content + b"a,b,c,d\n",
        "a quote without an end": content + b'"What is,sea\n',
        "Latin-1": content + "caf\xe9,sea\n".encode("latin-1"),
        "NUL": content + b"a\0b,sea\n",
        "a cell of 10 MB without an end": content + b'"' + b"x" * 10_000_000,
    }.items():
        yield f"CSV: {name}", write(other)
