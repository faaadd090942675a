"""A run in a folder: its settings, what a resumed run must find again, and what is finished."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ..adapters.folder import QUERY_FILE, REPORT_FILE
from ..files import os_reason, read_json, write_json
from ..machine.errors import is_out_of_memory
from .config import as_json


if TYPE_CHECKING:
    from typing_extensions import Self


# The errors of a disk that takes nothing more, or nothing at all
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class RunFolder:
    """
    The folder of a run. Work in progress lives in its subfolder `training`; results appear next to it when all is done.

    Whatever moment a run is killed at, the folder stays in one of four states, and what was finished is never lost:

    - nothing was begun: there is no `training/settings.json`;
    - begun: there is one. It is the first file that is written, and the last one that is deleted;
    - finished: there is the result, which is written last;
    - an earlier run was set aside: it lies in `.replaced`, as a whole. While it is moved, there or back, it lies in
      `.replaced.part`, and whoever comes next moves it back.

    Args:
        directory (`str` or `Path`): the output folder.
        settings (`dict`): everything that changes the result, JSON-serialisable; a resumed run must have the same.
        resume (`bool`, *optional*, defaults to `False`): go on with the unfinished run in the folder. If there is
            none, one is begun, with a warning; if it is finished, `is_finished` says so. So a job can be started again
            and again with the same arguments until it has succeeded.
        overwrite (`bool`, *optional*, defaults to `False`): replace the run in the folder. It is deleted when the new
            one is finished, and comes back if that fails before it has done any work.
        defaults (`dict`, *optional*): what a setting was before there was one: a record of an earlier version lacks it.

    Attributes:
        settings (`dict`): the settings, and what was found on the way: see `remember`.
        resumed (`bool`): whether the run was begun by an earlier process, whose time nobody knows.

    Raises:
        `FileExistsError`: the folder holds a finished run, an unfinished one, or other files, or another process is at
            work in it.
        `ValueError`: the run to resume had other settings, its record is damaged, or it is to be overwritten as well.
        `OSError`: the folder cannot be written.
    """

    RESULT = REPORT_FILE
    # Recorded on the way, by `remember`
    FOUND = ("fitting_steps", "base_sha256", "ae_sha256", "from_sha256", "kept_text", "queries_sha256")

    def __init__(
        self,
        directory: str | os.PathLike,
        settings: dict,
        resume: bool = False,
        overwrite: bool = False,
        defaults: dict | None = None,
    ):
        self.directory = Path(directory)
        self.work = self.directory / "training"
        self._settings_file = self.work / "settings.json"
        self._replaced = self.directory / ".replaced"
        self._moving = self.directory / ".replaced.part"
        self._lock_file = self.directory / ".lock"
        self._asked, self._defaults, self.resumed = settings, defaults or {}, False
        self.settings = as_json(settings)
        if resume and overwrite:
            raise ValueError("A run is either resumed or overwritten: leave out --resume or --overwrite.")
        if self._holds_other_files():
            raise FileExistsError(f"'{directory}' exists and is not an empty folder: choose another one.")
        self._lock()
        try:
            with self._writing():
                self._recover()
            self._open(resume, overwrite)
        except BaseException:
            self._release()
            raise

    def _open(self, resume: bool, overwrite: bool) -> None:
        if overwrite:
            with self._writing():
                if self._replaced.exists():  # an unfinished run lies over a finished one, which is worth more
                    self._discard()
                elif self.is_finished or self._is_begun:
                    self._set_aside()
        elif self._replaced.exists() and not self._is_begun and not resume:
            with self._writing():
                self._bring_back()
        if self.is_finished:
            if not resume:
                raise FileExistsError(
                    f"'{self.directory}' holds a finished run: choose another folder, or pass --overwrite."
                )
            self._check(read_json(self.directory / self.RESULT, "result", dict).get("settings"))
            return
        if self._is_begun:
            if not resume:
                raise FileExistsError(
                    f"'{self.directory}' holds an unfinished run: pass --resume to go on with it, or --overwrite to "
                    "start again."
                )
            self._check(self._read_settings())
            self.resumed = True
            return
        if resume and not self._replaced.exists():
            warnings.warn(
                f"There is no unfinished run in '{self.directory}' to resume: a new one begins.", stacklevel=1
            )
        with self._writing():
            self.work.mkdir(exist_ok=True)
            write_json(self._settings_file, self.settings)

    @property
    def is_finished(self) -> bool:
        return (self.directory / self.RESULT).is_file()

    @property
    def _is_begun(self) -> bool:
        return self._settings_file.is_file()

    # As a context, a run that fails before it has done any work is deleted: only what is worth resuming stays
    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, _) -> None:
        # Queries are no work to keep: the teacher's cache gives the same ones again
        cheap = (self._settings_file, self.work / QUERY_FILE)
        kept = any(path.is_file() and path not in cheap for path in self.work.rglob("*"))
        try:
            if isinstance(error, Exception) and not self.is_finished and not kept:
                self._clear_work()
                if self._replaced.exists():
                    self._bring_back()
        finally:
            self._release()
        reason = unwritable_reason(error)
        if reason:
            hint = "What was done is kept: go on with --resume when it can." if kept else "Nothing was done yet."
            raise OSError(f"The run in '{self.directory}' cannot write its files ({reason}). {hint}") from error

    def remember(self, name: str, value) -> None:
        """
        Record a value that was found on the way, and that a resumed run must not look for again. Its name is one of
        `FOUND`.
        """
        self.settings[name] = value
        write_json(self._settings_file, self.settings)

    def confirm(self, name: str, value: str, what: str) -> None:
        """Record what something is. Raises a `ValueError` if the run that is resumed had another one."""
        if self.settings.setdefault(name, value) != value:
            raise ValueError(
                f"The run in '{self.directory}' was started with another {what}: use that one, or --overwrite."
            )
        if not self.is_finished:
            self.remember(name, value)

    def publish(self, result: dict) -> None:
        """Write the result."""
        write_json(self.directory / self.RESULT, {**result, "settings": self.settings})

    def finish(self, result: dict) -> None:
        """Write the result, and delete the work in progress and what was overwritten."""
        self.publish(result)
        self._clear_work()
        shutil.rmtree(self._replaced, ignore_errors=True)

    # Settings

    def _read_settings(self) -> dict:
        try:
            return read_json(self._settings_file, "record of the settings", dict)
        except ValueError as error:
            raise ValueError(
                f"{str(error).rstrip('.')}. The run cannot be resumed: start again with --overwrite."
            ) from error

    def _check(self, record: dict | None) -> None:
        """Compare what is asked with what a run recorded, and take over what it found on the way."""
        if not isinstance(record, dict):
            raise FileExistsError(
                f"'{self.directory}' holds a finished run: choose another folder, or pass --overwrite."
            )
        defaults = as_json(self._defaults)
        # A setting that is newer than the record had the value that is the default now
        self.settings = {**defaults, **record}
        for name, value in as_json(self._asked).items():
            if name not in self.settings or self.settings[name] != value:
                # Prompts and queries are recorded as hashes, which tell a reader nothing
                earlier = self.settings.get(name)
                is_hash = any(isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) for v in (earlier, value))
                values = "" if is_hash else f" ({earlier}, now {value})"
                raise ValueError(
                    f"The run in '{self.directory}' was started with another {name.replace('_', ' ')}{values}: use "
                    "the same settings, or --overwrite."
                )
        unknown = record.keys() - defaults.keys() - self._asked.keys() - set(self.FOUND)
        if unknown:
            name = min(unknown)
            raise ValueError(
                f"The run in '{self.directory}' was started with {name}={record[name]}, which is not set now or is "
                "unknown to this version of peft_be: use the same settings and version, or --overwrite."
            )

    # The folder

    def _holds_other_files(self) -> bool:
        if not self.directory.exists():
            return False
        if not self.directory.is_dir():
            return True
        if self.is_finished or self._is_begun or self._replaced.exists() or self._moving.exists():
            return False
        if any(path not in (self.work, self._lock_file) for path in self.directory.iterdir()):
            return True
        # Of a run that was killed while it wrote its first file, or deleted its last one
        return any(
            path.is_file() and path != self._settings_file.with_suffix(".part") for path in self.work.rglob("*")
        )

    def _lock(self) -> None:
        self._made_folder = not self.directory.exists()
        self._held = FileLock(self._lock_file)
        with self._writing():
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                self._held.acquire(timeout=0)
            except Timeout:
                raise FileExistsError(
                    f"Another process is at work in '{self.directory}': wait until it has ended, or choose another folder."
                ) from None

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            self._lock_file.unlink(missing_ok=True)
            if self._made_folder and not any(self.directory.iterdir()):
                self.directory.rmdir()
        self._held.release()

    def _entries(self) -> list[Path]:
        """What belongs to the run in the folder, and not to one that was set aside."""
        return [p for p in self.directory.iterdir() if p not in (self._replaced, self._moving, self._lock_file)]

    def _set_aside(self) -> None:
        """Move what is in the folder into a subfolder of it, for the folder itself may be in use."""
        self._moving.mkdir()
        for path in self._entries():
            path.rename(self._moving / path.name)
        self._moving.rename(self._replaced)

    def _bring_back(self) -> None:
        self._discard()
        self._replaced.rename(self._moving)
        self._recover()

    def _recover(self) -> None:
        """End what a killed process had begun to move or to delete."""
        if self._moving.exists():
            for path in self._moving.iterdir():
                path.rename(self.directory / path.name)
            self._moving.rmdir()
        if self.is_finished:
            shutil.rmtree(self._replaced, ignore_errors=True)
            if self._is_begun or self.work.exists() and not any(self.work.iterdir()):
                self._clear_work()
        elif self._replaced.exists() and not self._is_begun:
            self._discard()

    def _discard(self) -> None:
        """Delete a run that lies over one that was set aside. Without its settings it counts as nothing."""
        self._settings_file.unlink(missing_ok=True)
        for path in self._entries():
            _delete(path)

    def _clear_work(self) -> None:
        """
        Delete the work in progress, its settings last: a folder with some work and no settings would be nobody's.
        """
        for path in self.work.iterdir():
            if path != self._settings_file:
                _delete(path)
        self._settings_file.unlink(missing_ok=True)
        self.work.rmdir()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            raise OSError(f"The output folder '{self.directory}' cannot be written: {error.strerror}.") from error


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def unwritable_reason(error: BaseException | None) -> str | None:
    """
    Why the disk took no more, or `None` if something else went wrong. safetensors and torch have exceptions of their own
    for it.
    """
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return os_reason(error)
    text = str(error)
    if isinstance(error, SafetensorError) and "I/O error" in text:
        return os_reason(error)
    if isinstance(error, RuntimeError) and ("PytorchStreamWriter" in text or "inline_container" in text):
        return "is the disk full?"
    return None


def failure(error: Exception) -> str:
    """
    Why one part of a run failed, in a line, so that the other parts can go on. The memory that it held is given back. A
    full disk is not the failure of one part: that error is raised again, and the run can be resumed later.
    """
    if unwritable_reason(error):
        raise error
    if is_out_of_memory(error):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return "Out of memory: lower the batch size, or give a shorter prompt or a smaller model."
    message = " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError, ImportError, FloatingPointError)):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
