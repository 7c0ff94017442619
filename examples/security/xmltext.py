"""Turns the XHTML inside CWE's XML into paragraphs, bullets and code. Knows no field of a weakness."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

from entities import collapse

_BLOCKS = {"p", "div", "ul", "ol", "li", "table", "tbody", "tr", "td", "th"}
_REFERENCE = re.compile(r"\s*\[\s*REF-\d+(?:\s*,\s*REF-\d+)*\s*\]")


def plain(text: str) -> str:
    """Return the text on one line without `[REF-…]` marks."""
    return collapse(_REFERENCE.sub("", text))


def paragraphs(node: Element) -> list[str]:
    """Return the node's paragraphs in order; list items begin with `- `, cells of a table's row are joined by ` | `."""
    found: list[str] = []
    inline = [node.text or ""]

    def flush() -> None:
        text = plain("".join(inline))
        inline.clear()
        if text:
            found.append(text)

    for child in node:
        if child.tag in _BLOCKS:
            flush()
            found.extend(_block(child))
        else:
            inline.append(" " if child.tag == "br" else "".join(child.itertext()))
        inline.append(child.tail or "")
    flush()
    return found


def _block(node: Element) -> list[str]:
    inner = paragraphs(node)
    if node.tag == "tr":
        return [" | ".join(inner)]
    if node.tag == "li" and inner:
        return [f"- {inner[0]}", *inner[1:]]
    return inner


def passages(node: Element | None) -> list[str]:
    """Return the node's paragraphs with list items kept below the paragraph that they follow."""
    found: list[str] = []
    for text in paragraphs(node) if node is not None else []:
        if text.startswith("- ") and found:
            found[-1] += f"\n{text}"
        else:
            found.append(text)
    return found


def flow(node: Element | None) -> str:
    """Return the node as one line: paragraphs one after another, list items separated by semicolons."""
    line = ""
    in_list = False
    for text in paragraphs(node) if node is not None else []:
        item = text.startswith("- ")
        if item:
            text = text[2:].rstrip(".;")
            line += ("; " if in_list else " ") + text
        else:
            line += (". " if in_list else " ") + text
        in_list = item
    return collapse(line + ("." if in_list else ""))


def code(node: Element) -> str:
    """Return a listing: `br` and `div` begin a line, a margin indents it."""
    lines = [""]
    _listing(node, "", lines)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _listing(node: Element, indent: str, lines: list[str]) -> None:
    def add(text: str | None) -> None:
        text = re.sub(r"\s+", " ", _REFERENCE.sub("", text or ""))
        lines[-1] += text if lines[-1].strip() else indent + text.lstrip()

    add(node.text)
    for child in node:
        if child.tag == "br":
            lines.append("")
        elif child.tag in _BLOCKS:
            lines.append("")
            _listing(child, indent + ("    " if "margin-left" in child.get("style", "") else ""), lines)
            lines.append("")
        else:
            _listing(child, indent, lines)
        add(child.tail)
