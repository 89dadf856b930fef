"""Start a real ComfyUI server on this machine and stop it again."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from . import comfyui
from .paths import DEV, PYTHON, Stop

START_SECONDS = 600  # a cold disk and one slow core that others use too
ATTEMPTS = 5  # at a port of its own; another program may take it before ComfyUI does
IN_USE = ("address already in use", "only one usage of each socket address")  # the second on Windows


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_port(port: int) -> None:
    """Stop unless a server can be started on this port."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise Stop(f"port {port} is taken by another program; choose another with --port.")


class _PortTaken(Exception):
    """Another program listens at the port by now."""


class Server:
    """A ComfyUI process with its own base directory; a context manager. Nothing is written into its checkout."""

    def __init__(self, home: Path, base: Path, port: int | None = None, arguments: Sequence[str] = ("--cpu",)):
        """port: None for any that is free."""
        self.home, self.base, self.arguments = home, base, tuple(arguments)
        self.wanted, self.port = port, port
        self.log = base / "comfyui.log"
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stop()

    def start(self) -> None:
        """Stop: the port that was asked for is taken, or ComfyUI does not start."""
        for attempt in range(1, ATTEMPTS + 1):
            self.port = self.wanted or free_port()
            if self.wanted:
                check_port(self.wanted)
            try:
                self._start()
            except _PortTaken as taken:
                if self.wanted or attempt == ATTEMPTS:
                    raise Stop(f"port {self.port} is taken by another program. Its log {self._tail()}") from taken
            else:
                return

    def _start(self) -> None:
        command = [
            PYTHON,
            *("-X", f"pycache_prefix={DEV / 'pycache'}"),
            self.home / "main.py",
            *("--base-directory", self.base, "--user-directory", self.base / "user"),
            *("--database-url", "sqlite:///:memory:", "--listen", "127.0.0.1", "--port", str(self.port)),
            *("--disable-auto-launch", "--disable-api-nodes", *self.arguments),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def get(self, path: str, timeout: float = 300) -> object:
        """A JSON answer of the server."""
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                if any(words in line.lower() for line in self.log_lines() for words in IN_USE):
                    raise _PortTaken
                raise Stop(f"ComfyUI {comfyui.version(self.home)} ended while starting. Its log {self._tail()}")
            if self._answers():
                self._check_imports()
                return
            time.sleep(0.2)
        raise Stop(f"ComfyUI did not answer within {START_SECONDS} s. Its log {self._tail()}")

    def _answers(self) -> bool:
        """Whether it is this process that answers: another server may have been quicker to take the port."""
        try:
            stats = self.get("/system_stats", timeout=10)
            return str(self.base) in stats["system"]["argv"]
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return False  # no connection, no answer in time, or not ComfyUI's

    def _check_imports(self) -> None:
        # ComfyUI carries on, and exits 0, when a pack fails to import; here that is an error.
        failed = [line for line in self.log_lines() if "IMPORT FAILED" in line or "Cannot import" in line]
        if any("gimbal" in line for line in failed):
            raise Stop(f"the pack did not import. The log {self._tail()}")

    def log_lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def _tail(self) -> str:
        return "\n".join([f"({self.log}) ends:", *self.log_lines()[-25:]])

    def _environment(self) -> dict[str, str]:
        # Up to 0.3.68 ComfyUI insists on a folder of the templates package that newer ones no longer have.
        stub = DEV / "stubs"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        environment.pop("PYTHONSAFEPATH", None)
        if "def templates_path" in (self.home / "app" / "frontend_management.py").read_text(encoding="utf-8"):
            (stub / "comfyui_workflow_templates" / "templates").mkdir(parents=True, exist_ok=True)
            (stub / "comfyui_workflow_templates" / "__init__.py").touch()
            environment["PYTHONPATH"] = str(stub)
        return environment
