"""
`peft-be` and Python as copies of one process that has their imports: ten commands then start in the time of one. Run as a module,
this is that process; `Forked` starts it, and writes the commands `peft-be` and `forked-python` that ask it.
"""

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path


CLIENT = """#!{python} -IS
import json, os, socket, sys
if sys.argv[0].endswith("python") and sys.argv[1] in ("-", "-c"):  # code that is no file
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(request)
    sys.exit(int(server.recv(16) or 1))
"""


class Forked:
    """
    Args:
        folder (`Path`): for the commands; it goes to the front of PATH.
        env (`dict`): the environment in which the imports are made. Each command has its own.
        max_steps (`int`, *optional*): the default number of steps, where nobody waits for rows that are any good.
    """

    def __init__(self, folder: Path, env: dict, max_steps: int | None = None):
        self.bin = folder / "bin"
        self.bin.mkdir()
        address = str(folder / "server")
        for name in ("peft-be", "forked-python"):
            (self.bin / name).write_text(CLIENT.format(python=sys.executable, address=address))
            (self.bin / name).chmod(0o755)
        ready, write = os.pipe()
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__, address, str(write), str(max_steps or "")],
            cwd=Path(__file__).parent.parent,
            env=env,
            pass_fds=[write],
            start_new_session=True,
        )
        os.close(write)
        with os.fdopen(ready) as pipe:
            assert pipe.read() == "ready"

    def close(self) -> None:
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()


def serve(address: str, ready: int, max_steps: int | None) -> None:
    from peft_be.recipe import Recipe

    if max_steps is not None:  # before the classes are made that inherit it
        Recipe.__dataclass_fields__["max_steps"].default = max_steps
    import peft_be.cli.main
    import peft_be.comparison
    import peft_be.evaluation
    import peft_be.runs.compress_many
    import peft_be.runs.pretrain_ae  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        os.write(ready, b"ready")
        os.close(ready)
        while True:
            client, _ = listener.accept()
            if not os.fork():
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(client)
            client.close()


def answer(client: socket.socket) -> None:
    """Run what a client asks for, in its place, and end."""
    length, files, *_ = socket.recv_fds(client, 4, 3)
    request = b""
    while len(request) < int.from_bytes(length, "big"):
        request += client.recv(2**16)
    sys.argv, folder, env = json.loads(request)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
    threading.Thread(target=end_with, args=(client,), daemon=True).start()
    import peft_be.cli.main

    code = 0
    try:
        if Path(sys.argv[0]).name == "peft-be":
            peft_be.cli.main.main()
        elif sys.argv[1] == "-m":
            module, sys.argv = sys.argv[2], sys.argv[2:]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.argv = sys.argv[1:]
            sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    client.sendall(str(code).encode())
    os._exit(code)


def end_with(client: socket.socket) -> None:
    """End when the client is gone, as after a timeout."""
    if not client.recv(1):
        os._exit(1)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if sys.argv[3] else None)
