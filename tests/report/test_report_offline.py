"""The page works offline: it asks for nothing, says so by policy, and a real browser draws every chart."""

import base64
import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LOADS = {"src", "href", "srcset", "data", "action", "formaction", "poster", "background", "xlink:href"}


class Loads(HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[tuple[str, str]] = []
        self.handlers: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [(tag, value or "") for name, value in attrs if name in LOADS]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_page_refers_to_nothing_but_itself_and_the_tear_sheet(run_dir: Path, report: Callable[[Path], Any]) -> None:
    page = report(run_dir)
    found = Loads()
    found.feed(page.markup)
    assert {tag for tag, _ in found.targets} <= {"a"}
    assert all(target.startswith("#") for _, target in found.targets)
    assert found.handlers == []
    assert not {"link", "iframe", "object", "embed", "img", "base", "form"} & set(found.tags)
    style = re.search(r"<style>(.*?)</style>", page.markup, re.DOTALL)
    assert style
    assert not re.search(r"url\(|@import|https?:", style[1])


def test_policy_forbids_requests_and_admits_exactly_the_two_scripts_written(
    run_dir: Path, report: Callable[[Path], Any]
) -> None:
    markup = report(run_dir).markup
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', markup)
    assert policy
    assert policy[1].startswith("default-src &#x27;none&#x27;;")
    scripts = re.findall(r"<script>(.*?)</script>", markup, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall(r"sha256-([^&]*)&", policy[1]) == digests
    assert len(scripts) == 2
    assert "http" not in policy[1]


def test_plotly_is_inlined_once_and_the_page_stays_small(make_run: Callable[..., Path], report: Callable) -> None:
    run_dir = make_run(n_groups=20, n_folds=16)
    markup = report(run_dir).markup
    assert markup.count("* plotly.js v") == 1
    assert len(markup.encode()) < 6_000_000


def test_importing_the_report_loads_neither_quantstats_nor_yfinance_nor_plotly() -> None:
    code = "import sys, qfml.report; print([m for m in ('quantstats', 'yfinance', 'plotly') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_draws_every_chart_and_runs_nothing_hostile(
    change: Callable, report: Callable[[Path], Any], tmp_path: Path
) -> None:
    hostile = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"

    def edit(metrics: dict[str, Any]) -> None:
        metrics["data"]["features"] = [hostile]
        metrics["significance"]["verdict"] = hostile
        metrics["strategies"][hostile] = metrics["strategies"]["ridge"]

    page = report(change(edit))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--virtual-time-budget=5000", "--dump-dom", (tmp_path / "run" / "report.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "<title>Walk-forward backtest</title>" in dom
    for key in page.figures:
        place = dom.index(f'id="chart-{key}"')
        assert "main-svg" in dom[place : place + 3000], key
