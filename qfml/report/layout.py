"""The parts every section of the page is made of: sections, notes, and places for charts."""

from __future__ import annotations

import dataclasses

from qfml.report.charts import Figure
from qfml.report.markup import Html, el

__all__ = ["Charts", "Section", "note", "warning"]


@dataclasses.dataclass(frozen=True)
class Section:
    """One section of the page: a heading with a sentence beside it, and the content.

    Args:
        key: Anchor.
        title: Heading.
        intro: What the section shows, in a sentence or two.
        content: Everything else.
    """

    key: str
    title: str
    intro: Html | str
    content: Html

    def html(self) -> Html:
        """The section as markup."""
        head = el("header", el("h2", self.title), el("p", self.intro))
        return el("section", head, el("div", self.content, class_="body"), id=self.key)


class Charts:
    """The figures of the page by name; sections hold places for them and a script draws them."""

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

    def place(self, key: str, figure: Figure, title: str, caption: str = "", controls: Html | str = "") -> Html:
        """Register a figure and return the place where it will be drawn."""
        self.figures[key] = figure
        height = f"height:{figure.get('height', 520)}px"
        head = el("figcaption", el("strong", title), el("span", caption) if caption else "", controls)
        return el("figure", head, el("div", id=f"chart-{key}", class_="chart", style=height), class_="plot")


def note(*parts: object) -> Html:
    """A remark in small print."""
    return el("p", *parts, class_="note")


def warning(*parts: object) -> Html:
    """Something a reader must not overlook."""
    return el("p", *parts, class_="warning")
