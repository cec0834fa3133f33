"""What a file that took over its process might do: targets of the sandbox."""

import os
import signal
import socket
import threading


def tries(request, report):
    """Try one thing and return what came of it."""
    what, path = request["what"], request["path"]
    actions = {
        "read another file": lambda: open("/etc/hostname").read(),
        "read its own file": lambda: open(path).read(),
        "list a folder": lambda: os.listdir("/"),
        "write a file": lambda: open(f"{path}.new", "w").write("a"),
        "write its own file": lambda: open(path, "a").write("a"),
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
