"""HTML that is escaped unless it was built here: text becomes markup only through `el`.

Names of assets, features and files, reasons, error messages and the whole config are other people's text. Every
function takes plain `str` as text and escapes it; only `Html`, which these functions return, passes through as is.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["Html", "definitions", "el", "join", "scrolling_table", "text"]

VOID = frozenset({"br", "hr", "meta", "link", "img"})


class Html(str):
    """Markup that is ready to be written; a plain `str` is not."""

    __slots__ = ()


def text(value: object) -> Html:
    """Escape anything that is not markup yet."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Concatenate pieces of text and markup."""
    return Html(html.escape(separator).join(text(part) for part in parts))


def el(tag: str, *children: object, **attributes: object) -> Html:
    """Make one element; `class_` and `data_chart` become `class` and `data-chart`, None leaves an attribute out.

    Args:
        tag: Name of the element.
        *children: Text (escaped) or `Html` (as is).
        **attributes: Attribute values, always escaped; True writes the bare name.

    Returns:
        The element.

    Examples:
        >>> el("p", "<script>", class_="note")
        '<p class="note">&lt;script&gt;</p>'
    """
    written = ""
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        written += f" {key}" if value is True else f' {key}="{html.escape(str(value), quote=True)}"'
    if tag in VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{join(children)}</{tag}>")


def definitions(pairs: Iterable[tuple[object, object]]) -> Html:
    """A list of terms and their values."""
    return el("dl", *(el("div", el("dt", term), el("dd", value)) for term, value in pairs))


def scrolling_table(
    headers: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    n_text: int = 1,
    caption: str,
    marked: frozenset[int] = frozenset(),
) -> Html:
    """A table in a box of its own that scrolls sideways where the screen is narrow.

    Args:
        headers: Column heads.
        rows: Cells, text or `Html`.
        n_text: How many leading columns are text (aligned left); the others are numbers.
        caption: What the table holds, for those who hear the page.
        marked: Indices of rows that stand out.

    Returns:
        The table in its box.
    """
    head = el(
        "tr", *(el("th", cell, scope="col", class_="t" if k < n_text else None) for k, cell in enumerate(headers))
    )
    body = []
    for index, row in enumerate(rows):
        cells = [el("th", row[0], scope="row", class_="t")]
        cells += [el("td", cell, class_="t" if k < n_text else None) for k, cell in enumerate(row[1:], start=1)]
        body.append(el("tr", *cells, class_="marked" if index in marked else None))
    table = el("table", el("caption", caption), el("thead", head), el("tbody", *body))
    return el("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)
