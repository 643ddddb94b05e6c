"""XML text to a tree that can be seen while it grows. Pure; nothing here knows the protocol.

Rules:
- Expat decides what is well-formed. Text that somebody else has vouched for may be skipped; places in error messages
  count it all the same.
- The caller refuses DOCTYPEs before the first piece, and takes off the tree what is whole. What is left is bounded in
  depth and in elements, so that neither bombs nor a record without end fill the memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from gateway.errors import UpstreamMalformed

MOST_DEPTH = 40  # levels: the protocol has nine
MOST_ELEMENTS = 50_000  # in the tree at a time: a piece of a body has at most a third of that
TAIL = len("<![CDATA[") - 1  # characters
DECLARATION = re.compile(r"\A<\?xml[ \t\n][^>]*\?>")


class TreeReader:
    """Expat, building a tree whose root is ours, so that it can be seen while it grows; knows where it is."""

    def __init__(self) -> None:
        self.in_cdata = False
        self._begun = False
        self._tail = ""  # of what was fed: a mark may have begun in it
        self.commented = False  # a comment or processing instruction has been seen: text may not be what it seems
        self._builder = TreeBuilder()
        self.document = self._builder.start("document", {})
        self._parser = XMLParser(target=self._builder)  # noqa: S314 - DOCTYPEs are refused before expat sees them
        self.elements = 0  # of the tree
        self._marked: tuple[Element, Element | None, Element] | None = None  # a place, and the mark that was there
        self._line, self._column = 1, 0  # after what expat has read
        self._skipped = 0  # lines that expat has not read
        self._shift = 0, 0  # a line, as expat counts, and how many columns its end is further than expat knows

    def feed(self, text: str) -> None:
        """Read a piece of text. Raises UpstreamMalformed."""
        if not text:
            return
        body = self._tail + (text if self._begun else DECLARATION.sub("", text))
        self._begun, self._tail = True, body[-TAIL:]
        if self.in_cdata or "<![CDATA[" in body:
            self.in_cdata = body.rfind("<![CDATA[") > body.rfind("]]>") or (self.in_cdata and "]]>" not in body)
        self.commented = self.commented or "<!--" in body or "<?" in body
        try:
            self._parser.feed(text)
            if hasattr(self._parser, "flush"):  # expat 2.6 and later may put off what it has been fed
                self._parser.flush()
        except ParseError as error:
            raise self._malformed(error) from error
        self._line, self._column = _moved(text, self._line, self._column)
        self._mend()
        self.elements = self._measure()

    def close(self) -> None:
        """Read the end. Raises UpstreamMalformed."""
        try:
            self._parser.close()
        except ParseError as error:
            raise self._malformed(error) from error
        self._mend()

    def skip(self, text: str) -> None:
        """Pass over text that expat need not read."""
        line, column = _moved(text, 0, self._column + (self._shift[1] if self._shift[0] == self._line else 0))
        self._skipped += line
        self._shift = self._line, column - self._column

    def skip_space(self, text: str) -> str:
        """Pass over white space before a declaration, which is not allowed there."""
        stripped = text.lstrip(" \t\n")
        self.skip(text[: len(text) - len(stripped)])
        return stripped

    @contextmanager
    def marked(self) -> Iterator[Element]:
        """Put an element of ours at the place that has been reached; gives the element that is open there."""
        mark = self._builder.start("mark", {})
        self._builder.end("mark")
        self._mend()
        parent = self.document
        while parent[-1] is not mark:
            parent = parent[-1]
        yield parent
        del parent[-1]
        self._marked = parent, parent[-1] if len(parent) else None, mark

    def _mend(self) -> None:
        """Put the text after a mark, which expat's builder has hung on it, where it belongs."""
        if self._marked is None:
            return
        parent, before, mark = self._marked
        if mark.tail is None:
            return
        self._marked = None
        if before is None:
            parent.text = (parent.text or "") + mark.tail
        else:
            before.tail = (before.tail or "") + mark.tail

    def _measure(self) -> int:
        """Count the elements of the tree. Raises UpstreamMalformed for too many, and for too deep ones."""
        depth, elements, level = 0, 0, list(self.document)
        while level:
            depth, elements = depth + 1, elements + len(level)
            if depth > MOST_DEPTH or elements > MOST_ELEMENTS:
                what = "is nested too deeply" if depth > MOST_DEPTH else "has too many elements"
                line = self._line + self._skipped
                raise UpstreamMalformed(f"the Callbutton server's answer {what}, before line {line}")
            level = [child for element in level for child in element]
        return elements

    def _malformed(self, error: ParseError) -> UpstreamMalformed:
        line, column = error.position
        if line == self._shift[0]:
            column += self._shift[1]
        return UpstreamMalformed(
            f"the Callbutton server's answer is not well-formed XML at line {line + self._skipped}, "
            f"column {column + 1}: {str(error).partition(':')[0]}"
        )


def _moved(text: str, line: int, column: int) -> tuple[int, int]:
    """The line and column after some text."""
    lines = text.count("\n")
    return line + lines, len(text) - text.rfind("\n") - 1 if lines else column + len(text)
