"""
Programs in processes of their own, forked from one that has done nothing but import what takes seconds.

That one starts with the first program and ends with the tests; no thread runs in it. A program sees a process like that
of `python -c`: its own environment, working directory, arguments and output, and an end like that of any other.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from tests.support.paths import ROOT

TIMEOUT_S = 120

_PARENT = """
import gc, json, os, socket, sys

def next_program(connection):
    while True:
        wanted, files, *_ = socket.recv_fds(connection, 1, 4)
        if not wanted:
            os._exit(0)
        child = os.fork()
        if not child:
            connection.close()
            for number, file in enumerate(files[:3]):
                os.dup2(file, number)
                os.close(file)
            with open(files[3], encoding="utf-8") as order:
                return json.load(order)
        for file in files:
            os.close(file)
        connection.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

exec(sys.argv[2])
gc.collect()
gc.freeze()  # what is imported stays: no child needs to look through it
program, sys.argv[1:], environment, folder = next_program(socket.socket(fileno=int(sys.argv[1])))
os.environ.clear()
os.environ.update(environment)
os.chdir(folder)
exec(compile(program, "<string>", "exec"))
"""

# What is there before the program begins: most of the repository, or what a call imports and nothing else of ours.
MOST = """
import multiprocessing.connection, multiprocessing.synchronize, psycopg, sqlalchemy.dialects.postgresql.psycopg
import shared.analytics, shared.calls.background, shared.cli, shared.images.save, shared.ledger, shared.llm_client
import shared.internal.lazy, tests.support.ledger_rows
shared.internal.lazy.load_all()
"""
LITELLM = "from shared.providers import endpoints; endpoints.import_litellm()"

# One write a line: where Python's output is not buffered, print() makes two, and the lines of two processes would mix.
_PRINT = """
import os

def print(*values, flush=True):
    os.write(1, (" ".join(map(str, values)) + "\\n").encode())
"""

_FORKS = """
import multiprocessing, sys
context = multiprocessing.get_context("fork")
count, *arguments = sys.argv[1:]
together = context.Barrier(int(count))
children = [context.Process(target=run, args=(number, together, *arguments)) for number in range(int(count))]
for child in children:
    child.start()
for child in children:
    child.join()
sys.exit(sum(child.exitcode != 0 for child in children))
"""


_parents: dict[str, tuple[socket.socket, subprocess.Popen[bytes]]] = {}


def _parent(imports: str) -> socket.socket:
    """The way to the process that all programs with these imports are forked from."""
    if imports in _parents:
        return _parents[imports][0]
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _PARENT, str(theirs.fileno()), imports]
    # Not for the test that comes first, but for all; it hears the end of the tests from its closed socket.
    process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
    theirs.close()
    ours.settimeout(TIMEOUT_S)
    _parents[imports] = ours, process
    return ours


def end() -> None:
    """End the processes that programs are forked from, if there are any."""
    while _parents:
        _, (connection, process) = _parents.popitem()
        connection.close()
        process.wait(TIMEOUT_S)


def run(
    program: str, *arguments: str, stdout: int | None = None, imports: str = MOST
) -> subprocess.CompletedProcess[str]:
    """
    Run a program to its end, in this process's environment and working directory.

    Args:
        program: Python, as for `python -c`; the repository can be imported.
        stdout: A file descriptor to write to; None to return what is written.
        imports: What has been imported when the program begins, `MOST` or `LITELLM`.
    """
    with _file() as order, _file() as said, _file() as wrong, Path(os.devnull).open("rb") as nothing:
        json.dump([program, arguments, dict(os.environ), str(Path.cwd())], order)
        order.seek(0)
        files = [nothing.fileno(), said.fileno() if stdout is None else stdout, wrong.fileno(), order.fileno()]
        connection = _parent(imports)
        socket.send_fds(connection, [b"."], files)
        status = int(connection.recv(16))
        said.seek(0)
        wrong.seek(0)
        return subprocess.CompletedProcess(["-c", *arguments], status, said.read(), wrong.read())


def _file() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8")


def race(program: str, *arguments: str, count: int = 2) -> list[str]:
    """
    What several processes print, line by line, without an order among them.

    Args:
        program: Python that defines `run(number, together, *arguments)`; `together` is a barrier for all of them.

    Raises:
        AssertionError: One of them failed, or wrote to standard error.
    """
    done = run(_PRINT + program + _FORKS, str(count), *arguments)
    # The message says what pytest would show of an assertion in a test's own file.
    assert (done.stderr, done.returncode) == ("", 0), f"ended with {done.returncode}:\n{done.stderr}"
    return done.stdout.splitlines()
