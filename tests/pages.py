"""What HTML must keep to, without a browser."""

from __future__ import annotations

from html.parser import HTMLParser

_VOID = {"br", "col", "hr", "img", "input", "link", "meta"}
_FETCHING = {"src", "href", "srcset", "action", "data", "poster", "background"}


class Page(HTMLParser):
    """A page's elements; a tag that is closed wrongly or left open is an error.

    Attributes:
        tags: names of all elements, in order.
        attributes: of each.
        texts: by element, what stands in it: ``(tag, text)``.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self._open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def text(self, *without: str) -> str:
        """All that is shown, elements ``without`` left out."""
        return "".join(text for tag, text in self.texts if tag not in ("script", "style", *without))


def check_html(html: str) -> Page:
    """Well-formed, asking nothing of anybody, with no event handlers in attributes."""
    page = Page(html)
    for tag, attributes in zip(page.tags, page.attributes):
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in _FETCHING or (value or "").startswith(("#", "data:")), (tag, value)
    return page
