"""A run in a folder: its settings, what a resumed run must find again, what is finished, and the training itself."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from transformers import PrinterCallback, Trainer
from transformers import ProgressCallback as ProgressBarCallback

from ..files import write_json
from .callbacks import OnProgress, Patience, ProgressCallback, StopOnInterrupt


# Validations without improvement after which training stops
PATIENCE = 5


def last_checkpoint(directory: str | os.PathLike) -> str | None:
    """
    The newest complete checkpoint of a [`~transformers.Trainer`], or `None`.

    The trainer writes its state last: a checkpoint without a whole one was cut off while it was written, and is deleted.
    """
    complete = []
    for folder in Path(directory).glob("checkpoint-*"):
        try:
            complete.append((json.loads((folder / "trainer_state.json").read_text())["global_step"], str(folder)))
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(folder)
    return max(complete)[1] if complete else None


def read_records(path: Path) -> list[dict]:
    """The records of [`append_record`]. One that was cut off while it was written is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def append_record(path: Path, record: dict) -> None:
    """Add a line of JSON to a file; one that was cut off in front of it is ended first."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")


class RunFolder:
    """
    The folder of a run. Work in progress lives in its subfolder `training`; results appear beside it when all is done.

    Args:
        directory (`str` or `Path`): the output folder.
        settings (`dict`): everything that changes the result, JSON-serialisable; a resumed run must have the same.
        resume (`bool`): go on with the unfinished run in the folder.
        overwrite (`bool`): replace the run in the folder. It is deleted when the new one is finished, and comes back if that
            fails before it has done any work.

    Raises:
        `FileExistsError`: the folder holds a finished run, an unfinished one, or other files.
        `FileNotFoundError`: there is no run to resume.
        `ValueError`: the run to resume had other settings, or it is to be overwritten as well.
        `OSError`: the folder cannot be written.
    """

    RESULT = "training.json"

    def __init__(self, directory: str | os.PathLike, settings: dict, resume: bool = False, overwrite: bool = False):
        self.directory = Path(directory)
        self.work = self.directory / "training"
        self._settings_file = self.work / "settings.json"
        self._replaced = self.directory / ".replaced"
        if resume and overwrite:
            raise ValueError("A run is either resumed or overwritten: leave out --resume or --overwrite.")
        if overwrite and (self.is_finished or self._settings_file.exists() or self._replaced.exists()):
            self._set_aside()
        elif self.is_finished:
            raise FileExistsError(f"'{directory}' holds a finished run: choose another folder, or pass --overwrite.")
        elif resume:
            self._check(settings)
        elif self._settings_file.exists():
            raise FileExistsError(
                f"'{directory}' holds an unfinished run: pass --resume to go on with it, or --overwrite to start again."
            )
        elif self.directory.exists() and (not self.directory.is_dir() or any(self.directory.iterdir())):
            raise FileExistsError(f"'{directory}' exists and is not an empty folder: choose another one.")
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            if not resume:
                self.settings = settings
                write_json(self._settings_file, settings)
        except OSError as error:
            raise OSError(f"The output folder '{directory}' cannot be written: {error.strerror}.") from error

    def _set_aside(self) -> None:
        """Move what is in the folder into a subfolder of it, for the folder itself may be in use."""
        if self.is_finished:
            shutil.rmtree(self._replaced, ignore_errors=True)
        try:
            entries = [path for path in self.directory.iterdir() if path != self._replaced]
            if self._replaced.exists():  # an unfinished run lies over a finished one, which is worth more
                for path in entries:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                return
            self._replaced.mkdir()
            for path in entries:
                path.rename(self._replaced / path.name)
        except OSError as error:
            raise OSError(f"The output folder '{self.directory}' cannot be written: {error.strerror}.") from error

    # As a context, it takes an empty run away when it fails: only work that is worth resuming stays
    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind, *_) -> None:
        failed = kind is not None and issubclass(kind, Exception)
        if failed and not any(path.is_file() and path != self._settings_file for path in self.work.rglob("*")):
            shutil.rmtree(self.work)
            if self._replaced.exists():
                for path in self._replaced.iterdir():
                    path.rename(self.directory / path.name)
                self._replaced.rmdir()
            if not any(self.directory.iterdir()):
                self.directory.rmdir()

    @property
    def is_finished(self) -> bool:
        return (self.directory / self.RESULT).is_file()

    def _check(self, settings: dict) -> None:
        if not self._settings_file.is_file():
            raise FileNotFoundError(f"There is no unfinished run in '{self.directory}' to resume: leave out --resume.")
        self.settings = json.loads(self._settings_file.read_text())
        for name, value in json.loads(json.dumps(settings)).items():
            if self.settings.get(name) != value:
                raise ValueError(
                    f"The run in '{self.directory}' was started with another {name.replace('_', ' ')} "
                    f"({self.settings.get(name)}, now {value}): use the same settings, or --overwrite."
                )

    def remember(self, name: str, value) -> None:
        """Add a value that was found out on the way, and that a resumed run must not find out again."""
        self.settings[name] = value
        write_json(self._settings_file, self.settings)

    def finish(self, result: dict) -> None:
        """Write the result, and delete the work in progress and what was overwritten."""
        write_json(self.directory / self.RESULT, result)
        shutil.rmtree(self.work)
        shutil.rmtree(self._replaced, ignore_errors=True)


def report_to(on_progress: OnProgress | None, trainer: Trainer, stage: str) -> None:
    """Report to `on_progress`, if there is one, in the place of the trainer's own printing."""
    if on_progress:
        trainer.add_callback(ProgressCallback(stage, on_progress))
        for printer in (PrinterCallback, ProgressBarCallback):
            trainer.remove_callback(printer)


def train(trainer: Trainer, stage: str) -> list[dict]:
    """Train to the end, from the last complete checkpoint if there is one, and return the log."""
    stop = StopOnInterrupt()
    trainer.add_callback(stop)
    if trainer.args.load_best_model_at_end:
        trainer.add_callback(Patience(PATIENCE))
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir))
    finally:
        stop.release()
    if stop.interrupted and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt
    # Without the summary at the end, which knows of this process's steps only
    return [{"stage": stage, **entry} for entry in trainer.state.log_history if "train_loss" not in entry]
