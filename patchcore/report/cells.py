"""Escaping of text from runs for CSV cells and Markdown.

Names and settings come from folders of any origin. No text may end its cell, start a formula, a
link or markup, or control a terminal.
"""

import re

from patchcore.errors import printable

FORMULA = re.compile(r"'*(?:[\t\r\n]|\s*[=+\-@])")
"""Matches text that a spreadsheet may read as a formula, before and after `harmless`."""


def harmless(text: str) -> str:
    """Return text for a CSV cell that no spreadsheet reads as a formula; `restored` undoes it.

    Text that begins with =, +, -, @, a tab or a line break gets an apostrophe in front.
    """
    return f"'{text}" if FORMULA.match(text) else text


def restored(text: str) -> str:
    """Return the text that `harmless` was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def markdown_text(text: str) -> str:
    """Return `text` for a line or cell of Markdown, without markup, links or line breaks."""
    line = printable(" ".join(text.split()))
    line = re.sub(r"([\\`*\[\]|~])", r"\\\1", line)
    # Only at the border of a word can it be markup, so keys such as image_size stay readable.
    line = re.sub(r"(?<!\w)_+|_+(?!\w)", lambda found: found[0].replace("_", r"\_"), line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"(?i)(://|\bwww\.)", lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line)


def markdown_code(text: str) -> str:
    """Return `text` as code in a line or cell of Markdown."""
    line = printable(" ".join(text.split())).replace("|", "\\|") or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    room = " " if "`" in (line[0], line[-1]) else ""
    return f"{fence}{room}{line}{room}{fence}"
