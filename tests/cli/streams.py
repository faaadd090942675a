"""Streams that a command writes to: real pipes, files and terminals, for a command that runs in the tests' process."""

import contextlib
import logging
import os
import sys
import threading
import warnings


@contextlib.contextmanager
def broken_pipe():
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    with contextlib.suppress(OSError), open(write, "w") as stream:
        yield stream


@contextlib.contextmanager
def terminal():
    """A terminal; `shown` gets all that was written to it once the context ends."""
    master, slave = os.openpty()
    chunks = []

    def read():
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(master, 65536):
                chunks.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    shown = []
    with open(slave, "w") as stream:
        yield stream, shown
    reader.join()
    os.close(master)
    shown.append(b"".join(chunks).decode())


def run_into(monkeypatch, stream, *arguments, columns=80):
    """Run `peft-be` with `stream` as its standard output; returns the exit code."""
    from peft_be.cli.main import main

    with monkeypatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["peft-be", *map(str, arguments)])
        patch.setattr(sys, "stdout", stream)
        patch.setenv("COLUMNS", str(columns))
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0
        finally:
            logging.disable(logging.NOTSET)
