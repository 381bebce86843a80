"""A headless Chromium, driven by the DevTools protocol over a pipe: no driver, no library, no port."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# What a key is to the page: its name, its code, and the text that it types.
KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " "), "ArrowLeft": (37, ""), "ArrowUp": (38, "")}
KEYS |= {"ArrowRight": (39, ""), "ArrowDown": (40, ""), "Home": (36, ""), "End": (35, ""), "PageDown": (34, "")}

# Becomes the browser, whose ends of the pipes are 3 and 4, whatever their numbers were.
_WITH_PIPES = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find():
    """The program, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page. requests: the addresses that it asked for. complaints: what its console and its script reported."""

    def __init__(self, program):
        self.requests, self.complaints, self._buffer, self._count = [], [], b"", 0
        self._folder = tempfile.TemporaryDirectory()
        ours, theirs = os.pipe(), os.pipe()  # what the browser reads, and what it writes
        flags = ["--remote-debugging-pipe", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        flags += [
            "--disable-background-networking",
            "--disable-component-update",
            f"--user-data-dir={self._folder.name}",
        ]
        ends = ours[0], theirs[1]
        command = [sys.executable, "-c", _WITH_PIPES, *map(str, ends), program, *flags]
        self._process = subprocess.Popen(command, pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in ends:
            os.close(end)
        self._in, self._out = ours[1], theirs[0]
        self._session = None
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def close(self):
        with contextlib.suppress(OSError):
            self._send("Browser.close", {}, None)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()

    def call(self, method, **arguments):
        """One command's result; events that come before it are noted."""
        number = self._send(method, arguments, self._session)
        while (message := self._receive(30)).get("id") != number:
            self._note(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def open(self, address):
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def evaluate(self, expression):
        """The value of a JavaScript expression, as JSON has it."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def until(self, expression, seconds=20):
        """Waits until the expression holds."""
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"did not come true within {seconds} s: {expression}"
            time.sleep(0.05)

    def look(self, *, width, height=900, dark=False):
        """The window's size in CSS pixels, and the theme that the reader prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def press(self, key, shift=False):
        code, text = KEYS[key]
        common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        common["modifiers"] = 8 if shift else 0
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector):
        """The mouse in the middle of the first element that the selector finds."""
        where = (
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            " found.scrollIntoView({block: 'center'}); const box = found.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2] })()"
        )
        x, y = self.evaluate(where)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, whole=False):
        """A PNG of what is seen, or of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def heard(self):
        """(role, name) of everything that a screen reader is told of, in order."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")
        ]

    def _note(self, message):
        method, details = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            address = details["request"]["url"]
            self.requests += [] if address.startswith("data:") else [address]
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(details["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(f"{details['type']}: {[each.get('value') for each in details['args']]}")
        elif method == "Log.entryAdded":
            self.complaints.append(details["entry"]["text"])

    def _send(self, method, arguments, session):
        self._count += 1
        message = {"id": self._count, "method": method, "params": arguments}
        os.write(self._in, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        return self._count

    def _receive(self, seconds):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._out], [], [], seconds)
            part = os.read(self._out, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError(f"{self._process.args[5]}: no answer")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)


@contextlib.contextmanager
def page(program=None):
    """A page of its own browser."""
    opened = Page(program or find())
    try:
        yield opened
    finally:
        opened.close()
