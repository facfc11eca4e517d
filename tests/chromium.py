"""A headless Chromium spoken to over its DevTools pipe: what a page shows, asks for and complains of."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT = 120  # seconds


def find_chromium() -> str | None:
    """Returns the program's path, or None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Chromium:
    """One page in one browser; a context manager.

    Attributes:
      requests: URLs that the page asked for, but for itself.
      complaints: errors, warnings and messages of its console, but for those of level "debug".
    """

    def __init__(self, width: int = 1280, height: int = 900):
        self.size = (width, height)
        self.requests, self.complaints = [], []
        self._count, self._rest, self._url = 0, b"", ""

    def __enter__(self):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        self._home = tempfile.TemporaryDirectory(prefix="kmed-chromium-", ignore_cleanup_errors=True)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={self._home.name}", "about:blank"]

        def connect():  # the browser reads file descriptor 3 and writes 4
            os.dup2(to_browser, 100)
            os.dup2(from_browser, 101)
            os.dup2(100, 3)
            os.dup2(101, 4)

        nowhere = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [find_chromium(), *flags]
        self._process = subprocess.Popen(command, close_fds=False, preexec_fn=connect, **nowhere)
        os.close(to_browser)
        os.close(from_browser)
        targets = self._send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(*self.size)
        return self

    def __exit__(self, *_):
        os.close(self._write)  # it ends when its pipe does
        os.close(self._read)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._home.cleanup()

    def send(self, method: str, **parameters) -> dict:
        """Returns the page's answer to a DevTools command."""
        return self._send(method, self._session, **parameters)

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Gives the page another window."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setScrollbarsHidden", hidden=True)  # as on a phone
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)

    def open(self, place) -> None:
        """Loads a file or a URL, and waits until it has."""
        self.requests, self.complaints = [], []
        self._url = place if isinstance(place, str) else place.resolve().as_uri()
        self.send("Page.navigate", url=self._url)
        self.wait_for(f"document.readyState + location.href == 'complete' + {json.dumps(self._url)}")

    def evaluate(self, expression: str):
        """Returns the value of a JavaScript expression in the page, or of what it promises."""
        told = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait_for(self, expression: str):
        """Returns the expression's value as soon as it is true; fails if it never is."""
        end = time.monotonic() + TIMEOUT
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"it never came true: {expression}"
            time.sleep(0.02)
        return value

    def choose(self, selector: str, paths) -> None:
        """Gives files to a file input, as a reader does who picks them."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve()) for path in paths])

    def press(self, key: str) -> None:
        """Presses a key that writes nothing, such as Tab."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27}[key]
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self) -> bytes:
        """Returns a PNG of the whole page."""
        told = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(told["data"])

    def pdf(self) -> bytes:
        """Returns the page as it is printed on A4."""
        told = self.send("Page.printToPDF", preferCSSPageSize=False, paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(told["data"])

    def _send(self, method, session=None, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            told = self._receive()
            if told.get("id") == self._count:
                assert "error" not in told, told
                return told["result"]
            self._note(told.get("method"), told.get("params"))

    def _receive(self) -> dict:
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event, told):
        if event == "Network.requestWillBeSent" and told["request"]["url"] not in ("about:blank", self._url):
            self.requests.append(told["request"]["url"])
        elif event == "Runtime.consoleAPICalled" and told["type"] == "debug":
            pass
        elif event in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(told))
