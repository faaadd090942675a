"""
The teacher's answers on disk: written so that a crash or a second process spoils nothing, and kept below a limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files import cache_dir, os_reason, read_json, write_json


# The variable with the size limit, and the limit without it: some 30 prompts of a 7B model, with 500 answers each
LIMIT_VARIABLE = "PEFT_BE_CACHE_LIMIT"
DEFAULT_LIMIT = "8GB"
ABOUT = "about.json"
# Seconds after which a file that still has no final name belongs to a process that was killed
LONGEST_WRITE = 3600
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass
class Answer:
    """
    One answer to one query.

    Attributes:
        query (`int`): index of the query.
        ids (`list[int]`): the T token ids, with the end-of-turn token if the answer reached it.
        hidden (`torch.Tensor` of shape `[T, d]`): the final hidden states that predict `ids`.
    """

    query: int
    ids: list[int]
    hidden: torch.Tensor


@dataclass
class CacheEntry:
    """
    Something in a cache.

    Attributes:
        path (`Path`): its file or folder.
        about (`str`): what it is.
        size (`int`): bytes.
        used (`float`): when it was last used, in seconds since the epoch.
    """

    path: Path
    about: str
    size: int
    used: float


class AnswerCache:
    """
    Answers on disk, under a key of everything that changes them. Written batch by batch, so that an interrupted run
    goes on where it stopped. The hidden states that it gives back are mapped from the files: they are read when a step
    needs them, and may be larger than the memory. Each file has a checksum, and one that does not match counts as
    missing.

    Args:
        directory (`str` or `os.PathLike`): the folder of all caches.
        key (`dict`): JSON-serialisable description; equal keys mean equal answers.
        about (`str`, *optional*, defaults to `""`): what the answers are, for whoever looks into the cache.
        limit (`int`, *optional*): bytes that all caches in `directory` may take; `None` sets no limit. What was used
            least recently goes first, and what a process is reading or writing stays.
    """

    def __init__(self, directory: str | os.PathLike, key: dict, about: str = "", limit: int | None = None):
        text = json.dumps(key, sort_keys=True)
        self.directory = Path(directory) / hashlib.sha256(text.encode()).hexdigest()[:32]
        self.about = about
        self.limit = limit

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Context in which no process deletes the answers to make room."""
        lock = FileLock(self.directory / ".lock")
        # A folder that cannot be written may still be read. And another process that works on the same answers keeps
        # them, too: there is no need to wait for it, for each file appears whole or not at all
        with contextlib.suppress(Timeout, OSError):
            self.directory.mkdir(parents=True, exist_ok=True)
            if not (self.directory / ABOUT).is_file():
                write_json(self.directory / ABOUT, {"about": self.about})
            os.utime(self.directory)
            lock.acquire(timeout=0)
            for part in self.directory.glob("*.part"):  # of a process that was killed
                if part.stat().st_mtime < time.time() - LONGEST_WRITE:
                    part.unlink()
        try:
            yield
        finally:
            lock.release()

    def load(self, number: int) -> list[Answer] | None:
        """The answers of batch `number`, or `None` if they are not there, or damaged."""
        try:
            with safe_open(self._path(number), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                checksum = (file.metadata() or {}).get("checksum")
        except (OSError, SafetensorError):
            return None
        if checksum != self._checksum(number, tensors):
            return None
        lengths = tensors["lengths"].tolist()
        ids, hidden = tensors["ids"].split(lengths), tensors["hidden"].split(lengths)
        return [Answer(q, i.tolist(), h) for q, i, h in zip(tensors["query"].tolist(), ids, hidden)]

    def save(self, number: int, answers: list[Answer]) -> None:
        """
        Write batch `number`; the file appears under its name only when it is complete.

        Raises:
            `OSError`: it cannot be written.
        """
        tensors = {
            "query": torch.tensor([a.query for a in answers]),
            "lengths": torch.tensor([len(a.ids) for a in answers]),
            "ids": torch.tensor([token for a in answers for token in a.ids]),
            "hidden": torch.cat([a.hidden for a in answers]).cpu().contiguous(),
        }
        part = self._path(number).with_suffix(f".{os.getpid()}.part")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, metadata={"checksum": self._checksum(number, tensors)})
            os.replace(part, self._path(number))
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise OSError(
                f"The teacher's cache '{self.directory.parent}' cannot be written ({os_reason(error)}): make room, "
                "for instance with peft-be cache --clear, or set PEFT_BE_CACHE to another folder."
            ) from error
        if self.limit is not None:
            make_room(self.directory.parent, self.limit, keep=self.directory)

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:05d}.safetensors"

    def _checksum(self, number: int, tensors: dict[str, torch.Tensor]) -> str:
        """Of the numbers and of where they belong: a file of another key or batch is as wrong as a damaged one."""
        value = zlib.crc32(f"{self.directory.name}/{number}".encode())
        for name, tensor in sorted(tensors.items()):
            value = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), value)
            value = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, value)
        return f"{value:08x}"


def teacher_cache_dir() -> Path:
    """Where the jobs keep the teacher's answers."""
    return cache_dir() / "teacher"


def cache_limit() -> int:
    """
    Bytes that the teacher's cache may take: `$PEFT_BE_CACHE_LIMIT`, such as `500MB` or `20GB`, or 8 GB.

    Raises:
        `ValueError`: the variable holds no size.
    """
    text = os.environ.get(LIMIT_VARIABLE) or DEFAULT_LIMIT
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{LIMIT_VARIABLE} is '{text}', which is no size: give one such as 500MB or 20GB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def cached_entries(directory: str | os.PathLike) -> list[CacheEntry]:
    """What a cache folder holds, the least recently used first."""
    entries = []
    with contextlib.suppress(FileNotFoundError):
        for path in Path(directory).iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process may be clearing it
                files = [path, *path.rglob("*")]
                size = sum(file.stat().st_size for file in files if file.is_file())
                entries.append(CacheEntry(path, _about(path), size, path.stat().st_mtime))
    return sorted(entries, key=lambda entry: entry.used)


def make_room(directory: str | os.PathLike, limit: int, keep: Path | None = None) -> list[CacheEntry]:
    """
    Delete what was used least recently from a cache folder until it takes no more than `limit` bytes.

    Args:
        directory (`str` or `os.PathLike`): the folder.
        limit (`int`): bytes; 0 deletes all that no process is reading or writing.
        keep (`Path`, *optional*): what stays in any case.

    Returns:
        `list[CacheEntry]`: what was deleted.
    """
    entries = cached_entries(directory)
    total = sum(entry.size for entry in entries)
    deleted = []
    for entry in entries:
        if total <= limit:
            break
        if entry.path != keep and delete_entry(entry):
            deleted.append(entry)
            total -= entry.size
    return deleted


def delete_entry(entry: CacheEntry) -> bool:
    """Delete something from a cache, unless a process is reading or writing it. Whether that was done."""
    if not entry.path.is_dir():
        entry.path.unlink(missing_ok=True)
        return True
    lock = FileLock(entry.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    try:
        # What is mapped stays readable on Unix; where it cannot be deleted, it stays
        shutil.rmtree(entry.path, ignore_errors=True)
    finally:
        lock.release()
    return not entry.path.exists()


def _about(path: Path) -> str:
    try:
        return str(read_json(path / ABOUT, "description", dict)["about"])
    except (OSError, ValueError, KeyError):
        return path.name
