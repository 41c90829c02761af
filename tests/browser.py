"""Chromium in a network namespace of a test's, driven by selenium: what a page shows, asks for and complains of."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from datapath import netns as namespaces
from tests.hosts import wait_for

T = TypeVar("T")
_FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1400,900",
)
_OWN_SCHEMES: Final = ("chrome:", "data:", "about:", "chrome-untrusted:")


class Browser:
    """A Chromium whose every call is made by a thread that is in the namespace."""

    def __init__(self, thread: ThreadPoolExecutor, driver: webdriver.Chrome) -> None:
        self._thread, self._driver = thread, driver

    def do(self, call: Callable[[webdriver.Chrome], T]) -> T:
        return self._thread.submit(call, self._driver).result(60)

    def open(self, url: str) -> None:
        self.do(lambda driver: driver.get(url))

    def run(self, script: str, *arguments: Any) -> Any:
        """What JavaScript returns."""
        return self.do(lambda driver: driver.execute_script(script, *arguments))

    def texts(self, selector: str) -> list[str]:
        """The text of every element that a CSS selector finds."""
        found = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)", selector
        )
        return list(found)

    def wait(self, script: str, what: str, *arguments: Any) -> Any:
        """Runs JavaScript until what it returns is true, and returns that."""
        return wait_for(lambda: self.run(script, *arguments), lambda: f"{what}; the page:\n{self.texts('body')}")

    def press(self, keys: str) -> None:
        """Types into what has the focus."""
        self.do(lambda driver: driver.switch_to.active_element.send_keys(keys))

    def complaints(self) -> list[str]:
        """What was written to the console since the last call, by Chromium's own pages left out."""
        entries = [entry["message"] for entry in self.do(lambda driver: driver.get_log("browser"))]
        return [entry for entry in entries if not entry.startswith(_OWN_SCHEMES)]

    def requests(self) -> list[str]:
        """Every URL that was asked for since the last call, Chromium's own pages left out."""
        entries = [json.loads(entry["message"])["message"] for entry in self.do(lambda d: d.get_log("performance"))]
        urls = [
            str(entry["params"]["request"]["url"])
            for entry in entries
            if entry["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(_OWN_SCHEMES)]


@contextmanager
def browser(netns: str, *flags: str) -> Iterator[Browser]:
    """A Chromium in the network namespace at `netns`, which ends with the block; `flags` are further ones."""
    directory = Path(tempfile.mkdtemp(prefix="lsb", dir="/tmp"))

    def start() -> webdriver.Chrome:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (*_FLAGS, *flags, f"--user-data-dir={directory / 'profile'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        environment = {**os.environ, "HOME": str(directory), "TMPDIR": str(directory)}
        return webdriver.Chrome(options, Service("/usr/bin/chromedriver", env=environment))

    with ThreadPoolExecutor(1, initializer=namespaces.enter, initargs=(netns,)) as thread:
        driver = thread.submit(start).result(120)
        try:
            yield Browser(thread, driver)
        finally:
            thread.submit(driver.quit).result(60)
            shutil.rmtree(directory, ignore_errors=True)
