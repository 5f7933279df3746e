"""A headless Chromium, driven over its own protocol (Chrome DevTools Protocol) by websocket-client, which Jupyter
brings along: the tests need no driver package, only a browser.

    with Browser(find()) as page:
        page.open(file); page.run("document.title"); page.screenshot(path)
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find() -> str | None:
    """Path of a Chromium: $CHROMIUM, or the first of NAMES on the PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab. `log` collects what a page complains about: console errors, uncaught exceptions, refused content."""

    def __init__(self, executable: str, patience: float = 30):
        self.patience, self.log, self._count = patience, [], 0
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = [
            "--headless=new",
            "--remote-debugging-port=0",
            f"--user-data-dir={self._folder.name}",
            "--no-first-run",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-extensions",
            "--disable-background-networking",
            "--disable-component-update",
            "--hide-scrollbars",
            "--proxy-server=127.0.0.1:9",
        ]  # no network at all
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
        self._process = subprocess.Popen(
            [executable, *flags, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._socket = websocket.create_connection(
                self._tab(), timeout=patience, suppress_origin=True
            )
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def _tab(self) -> str:
        port = Path(self._folder.name) / "DevToolsActivePort"
        end = time.monotonic() + self.patience
        while time.monotonic() < end and self._process.poll() is None:
            if port.exists() and len(lines := port.read_text().split()) >= 2:
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                    f"http://127.0.0.1:{lines[0]}/json/list", timeout=self.patience
                ) as answer:
                    tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
                if tabs:
                    return tabs[0]["webSocketDebuggerUrl"]
            time.sleep(0.05)
        raise RuntimeError(f"the browser did not start (exit status {self._process.poll()})")

    def call(self, method: str, until: str = "", **parameters) -> dict:
        """Result of a protocol command; with `until`, waits for that event as well. RuntimeError if refused."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        answer, seen = None, not until
        while answer is None or not seen:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                answer = message["result"]
            seen = seen or message.get("method") == until
            self._note(message)
        return answer

    def _note(self, message: dict) -> None:
        kind, content = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            details = content["exceptionDetails"]
            self.log.append(details.get("exception", {}).get("description", details["text"]))
        elif kind == "Runtime.consoleAPICalled" and content["type"] in ("error", "assert"):
            self.log.append(str(content["args"]))
        elif kind == "Log.entryAdded" and content["entry"]["level"] == "error":
            self.log.append(content["entry"]["text"])

    def open(self, file: Path) -> None:
        self.call("Page.navigate", until="Page.loadEventFired", url=Path(file).resolve().as_uri())

    def run(self, script: str):
        """Value of a JavaScript expression; RuntimeError if it throws."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(
                found["exceptionDetails"].get("exception", {}).get("description", script)
            )
        return found["result"].get("value")

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """A window of that many CSS pixels, a phone below 600."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            mobile=phone,
            deviceScaleFactor=2 if phone else 1,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )

    def click(self, selector: str) -> None:
        """With a real mouse, in the middle of the first match, scrolled into view: what covers it gets the click."""
        at = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'center', inline: 'center'}}); const r = "
            f"e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1
            )

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **extra,
            )

    def screenshot(self, path: Path, whole: bool = False) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_) -> None:
        self.close()
