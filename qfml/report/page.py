"""The page: sections in order, the data of its charts, plotly.js once, and a policy that forbids any request."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qfml.files import replace_text
from qfml.report.layout import Charts, Section
from qfml.report.markup import Html, el, join
from qfml.report.style import CSS, SCRIPT

__all__ = ["FILE_NAME", "document", "write_page"]

FILE_NAME = "report.html"
OFFLINE = "The page works offline. Drag across a chart to zoom, double-click to see all of it again."


def write_page(
    folder: Path, title: str, headline: Html, sections: Sequence[Section], charts: Charts, version: str | None = None
) -> Path:
    """Write `report.html` into `folder`: the headline, then the sections with links to them.

    Args:
        folder: of the run.
        title: of the browser's window.
        headline: the title block.
        sections: in order.
        charts: the figures that the sections have placed.
        version: of qfml, that made the run.
    """
    links = [el("a", section.title, href=f"#{section.key}") for section in sections]
    made_by = "Made by qfml" if version is None else f"Made by qfml {version}"
    body = [
        el("nav", el("div", *links), aria_label="Sections"),
        el("main", headline, *(section.html() for section in sections)),
        el("footer", f"{made_by} from the folder ", el("code", folder.resolve().name), ". ", OFFLINE),
    ]
    target = folder / FILE_NAME
    replace_text(target, document(body, charts, title))
    return target


def document(body: list[Html], charts: Charts, title: str) -> Html:
    """A whole page that works offline and may send no request."""
    from plotly.offline import get_plotlyjs

    figures, arrays = _split(charts)
    scripts = [Html(get_plotlyjs()), Html(SCRIPT)]
    head = [
        el("meta", charset="utf-8"),
        # only the two scripts written here may run, whatever a feature or an asset is called
        el("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="robots", content="noindex"),
        el("title", title),
        el("style", Html(CSS)),
    ]
    told = el("noscript", el("p", "The charts need JavaScript; the numbers do not.", class_="note"))
    parts = [
        *body,
        told,
        el("script", _json(arrays), type="application/json", id="arrays"),
        el("script", _json(figures), type="application/json", id="figures"),
        *(el("script", script) for script in scripts),
    ]
    return join([Html("<!doctype html>\n"), el("html", el("head", *head), el("body", *parts), lang="en")])


def _policy(scripts: list[Html]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _split(charts: Charts) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures with each array replaced by its key, and the arrays, each once however many lines share it."""
    arrays: dict[str, Any] = {}

    def without_arrays(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            # plotly reads little-endian base64 by the name of its type
            raw = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
            kind = f"{raw.dtype.kind}{raw.dtype.itemsize}"
            key = hashlib.sha256(kind.encode() + raw.tobytes()).hexdigest()[:16]
            arrays[key] = {"dtype": kind, "bdata": base64.b64encode(raw.tobytes()).decode()}
            return {"array": key}
        if isinstance(value, dict):
            return {key: without_arrays(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [without_arrays(item) for item in value]
        return value

    return without_arrays(charts.figures), arrays


def _json(value: Any) -> Html:
    """JSON that cannot end its script element; NaN, which JSON does not know, becomes null."""
    text = json.dumps(_finite(value), separators=(",", ":"))
    return Html(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
