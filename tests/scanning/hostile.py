"""What a file that took over its process might do: targets of the sandbox."""

import os
import signal
import socket
import threading
from pathlib import Path


def tries(request, report):
    """Try one thing and return what came of it."""
    what, path = request["what"], request["path"]
    actions = {
        "read another file": lambda: Path("/etc/hostname").read_text(),
        "read its own file": lambda: Path(path).read_text(),
        "list a folder": lambda: os.listdir("/"),
        "write a file": lambda: Path(f"{path}.new").write_text("a"),
        "write its own file": lambda: Path(path).write_text("a"),
        "open a socket": lambda: socket.socket(),
        "fork": os.fork,
        "start a program": lambda: os.execv("/bin/true", ["true"]),
        "signal its parent": lambda: os.kill(os.getppid(), signal.SIGKILL),
        "take memory": lambda: bytearray(4 << 30),
    }
    report("trying")
    try:
        actions[what]()
    except (OSError, MemoryError) as error:
        return type(error).__name__
    return "done"


def ends(request, report):
    """End in some way."""
    report(request["how"])
    if request["how"] == "abort":
        os.abort()
    if request["how"] == "spin":
        while True:
            pass
    if request["how"] == "wait":
        threading.Event().wait()
    if request["how"] == "exit":
        os._exit(3)
    raise MemoryError("no more")
