"""Model servers, started for a measurement and stopped after it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass
class Server:
    """A running server; `url` is what its paths are appended to, `pid` its process."""

    url: str
    pid: int

    def post(self, path: str, body: dict) -> dict | str:
        """The reply: what its JSON says, or a text."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as response:
                reply = response.read().decode()
                return json.loads(reply) if response.headers.get_content_subtype() == "json" else reply
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code} {error.read().decode()[:500]}") from error

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path) as response:
            return response.read().decode()

    def memory(self) -> int:
        """Bytes that the server's processes have to themselves."""
        process = psutil.Process(self.pid)
        return sum(each.memory_full_info().uss for each in (process, *process.children(recursive=True)))


def vllm_server(
    python: str, model: str, *options: str, kv_gib: int = 1, timeout: float = 600, environment: dict | None = None
):
    """
    A vLLM server of `model` that calls it `base`, as a context manager that gives a [`Server`].

    Args:
        python (`str`): the interpreter of an environment with vLLM in it.
        model (`str`): folder or Hub id.
        *options (`str`): further options of `vllm serve`.
        kv_gib (`int`, *optional*, defaults to `1`): memory for the KV cache on CPU, in whole GiB.
        timeout (`float`, *optional*, defaults to `600`): how long it may take to start, in seconds.
        environment (`dict[str, str]`, *optional*): further environment variables of the server.
    """
    # The same as `vllm serve`, which some builds for CPU cannot run for want of their package's name
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "base"]
    ours = {"VLLM_CPU_KVCACHE_SPACE": str(kv_gib), "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    return _server([*command, *options], ours | (environment or {}), timeout)


def llama_server(program: str, model: str, *options: str, timeout: float = 600):
    """
    A server of llama.cpp, as a context manager that gives a [`Server`].

    Args:
        program (`str`): `llama-server`, see `make llama-server`.
        model (`str`): GGUF file.
        *options (`str`): further options.
        timeout (`float`, *optional*, defaults to `600`): how long it may take to start, in seconds.
    """
    return _server([program, "--model", model, *options], {}, timeout)


@contextmanager
def _server(command: list[str], environment: dict[str, str], timeout: float) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The packages of this process are not the server's
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        server = Server(f"http://127.0.0.1:{port}", process.pid)
        try:
            start = time.monotonic()
            while not _is_up(server):
                if process.poll() is not None or time.monotonic() - start > timeout:
                    log.seek(0)
                    raise RuntimeError(f"The server did not start: {' '.join(command)}\n{log.read()[-4000:]}")
                time.sleep(1)
            yield server
        finally:
            _stop(process)


def _is_up(server: Server) -> bool:
    try:
        server.get("/health")
    except (OSError, urllib.error.URLError):
        return False
    return True


def _stop(process: subprocess.Popen) -> None:
    """End the server and the processes that it started."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        pass
    if sys.platform != "win32":
        try:
            os.killpg(process.pid, 9)
        except ProcessLookupError:
            pass
    process.wait()
