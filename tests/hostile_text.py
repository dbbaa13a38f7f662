"""Text that would be markup if a page let it, and what a page's markup starts."""

from html.parser import HTMLParser

HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(2)>"'&<b>{{x}}%{y}"""


class Elements(HTMLParser):
    """The elements of a page and the event handlers among their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.started.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
