"""A headless browser for tests of pages, over the pipe of its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
)


def find_browser() -> str | None:
    """Return the path of a browser that is installed, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser; `messages` holds what its console and its security policy reported."""

    def __init__(self, executable: str, profile: Path) -> None:
        to_browser, write_end = os.pipe()
        read_end, from_browser = os.pipe()

        def connect() -> None:
            for source, target in ((os.dup(to_browser), 3), (os.dup(from_browser), 4)):
                os.dup2(source, target)

        command = [executable, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for end in (to_browser, from_browser):
            os.close(end)
        self._write, self._read = os.fdopen(write_end, "wb", 0), os.fdopen(read_end, "rb", 0)
        self._buffer, self._number, self._session = b"", 0, ""
        self.messages: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        self._write.write(
            json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        return self._until(lambda found: found.get("id") == self._number)

    def _until(self, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            while b"\0" not in self._buffer:
                part = os.read(self._read.fileno(), 1 << 16)
                if not part:
                    raise RuntimeError("the browser ended")
                self._buffer += part
            text, self._buffer = self._buffer.split(b"\0", 1)
            found = json.loads(text)
            if "error" in found:
                raise RuntimeError(found["error"]["message"])
            method, params = found.get("method", ""), found.get("params", {})
            if method in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.messages.append(json.dumps(params))
            if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("file:"):
                self.messages.append(params["request"]["url"])
            if is_it(found):
                result: dict[str, Any] = found.get("result", found)
                return result

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a file and wait until it is loaded."""
        self("Page.navigate", url="about:blank")
        self("Page.navigate", url=f"file://{path}{fragment}")
        self._until(
            lambda found: found.get("method") == "Page.loadEventFired" and self.run("location.href") != "about:blank"
        )

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True, userGesture=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        return found["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys one after the other: a letter, or a name such as "Enter"."""
        for key in keys:
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            code = {"Enter": 13, "Tab": 9, "Escape": 27}.get(key, ord(key[0].upper()))
            common = {"key": key, "windowsVirtualKeyCode": code}
            self("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
            self("Input.dispatchKeyEvent", type="keyUp", **common)

    def picture(self, path: Path, *, width: int = 1400, height: int = 1600, top: int = 0, dark: bool = False) -> None:
        """Write a picture of the page."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        found = self("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def print(self) -> bytes:
        """Return the page as PDF."""
        return base64.b64decode(self("Page.printToPDF", printBackground=True)["data"])

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(20)
        self._write.close()
        self._read.close()
