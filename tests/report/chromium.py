"""A headless Chromium, driven over its debugging pipe. It needs no package; without a browser its tests are skipped."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--no-first-run", "--remote-debugging-pipe",
)  # fmt: skip
# The debugging pipe is looked for at descriptors 3 and 4; a new process is free to use those, we are not.
CONNECT = "import os, sys; [os.dup2(int(sys.argv[i]), i + 2) for i in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"
PATIENCE_SECONDS = 120.0


def find_chromium() -> str:
    """Its path, from VELOCITY_CHROMIUM or PATH; the test is skipped where there is none."""
    found = os.environ.get("VELOCITY_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: install one (apt-get install chromium), or name it in VELOCITY_CHROMIUM")
    return found


class Chromium:
    """One browser with one page."""

    def __init__(self, folder: Path) -> None:
        to_browser, ours = (fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in os.pipe())
        theirs, from_browser = (fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in reversed(os.pipe()))
        browser = [find_chromium(), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        command = [sys.executable, "-S", "-c", CONNECT, str(to_browser), str(theirs), *browser]
        self._log = (folder.parent / "chromium.log").open("wb")
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, pass_fds=(to_browser, theirs))
        os.close(to_browser)
        os.close(theirs)
        self._out, self._in = ours, from_browser
        self._rest, self._number, self.events = b"", 0, list[dict[str, Any]]()
        target = next(one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> Any:
        """The browser's answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (said := self._read()).get("id") != self._number:
            self.events.append(said)
        assert "error" not in said, f"{method}: {said}"
        return said["result"]

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(deadline - time.monotonic(), 0))
            block = os.read(self._in, 1 << 20) if ready else b""
            assert block, "Chromium does not answer; see chromium.log"
            self._rest += block
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def open(self, url: str, *, width: int, dark: bool = False, height: int = 900) -> float:
        """The page is shown, at that width; how many seconds it took until it was drawn."""
        phone = width < 600
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        started = time.monotonic()
        self.ask("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.monotonic() - started

    def run(self, script: str) -> Any:
        """What the expression gives, a promise awaited."""
        told = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait_for(self, script: str) -> None:
        """The expression holds, though the page may be loaded anew meanwhile."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(AssertionError):  # of a page that is going
                if self.run(script):
                    return
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.1)

    def complaints(self) -> list[str]:
        """What the page's console and network had to say since it was opened: broken policies, what was not found."""
        told = ("Log.entryAdded", "Runtime.exceptionThrown")
        return [json.dumps(one["params"])[:400] for one in self.events if one.get("method") in told]

    def requests(self) -> list[str]:
        """The addresses that the page asked for."""
        asked = [one["params"] for one in self.events if one.get("method") == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in asked if not one["request"]["url"].startswith("data:")]

    def picture(self, file: Path, *, whole: bool = True) -> Path:
        """A screenshot of the page, or of what a window shows of it."""
        told = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(told["data"]))
        return file

    def close(self) -> None:
        """The browser has ended."""
        self.process.kill()
        self.process.wait()
        self._log.close()
        os.close(self._out)
        os.close(self._in)
