"""Text as it can be shown: names come out of strangers' models, and none of them may steer a terminal, a log or a reader's eye.

What is not visible is written as Python writes it: `\\x1b`, `\\u202e`, `\\n`. That is decided by Unicode's categories, as for
`repr`: control characters (C0, DEL, C1), invisible ones and those that turn the direction of writing, line separators, halves of
surrogate pairs (bytes of a file name that are no UTF-8), code points without a character. Spaces of any width stay.
"""

from __future__ import annotations

import re
import unicodedata

# A runner of GitHub Actions or Azure Pipelines takes a line of a log that begins with `::`, or has `##[` in it, for a command.
_COMMAND = re.compile(r"(?<!\S)::|##\[")
INDENT = "    "  # of the further lines of a message: whatever a name holds, it begins no line


def printable(text: str, keep: str = "\n") -> str:
    """The text with what cannot be seen escaped, but for the characters of `keep`."""
    return text if text.isprintable() else "".join(each if _is_seen(each) or each in keep else _escaped(each) for each in text)


def one_line(text: str) -> str:
    """The text on one line, newlines escaped too, with nothing in it that a CI runner takes for a command."""
    return _COMMAND.sub(lambda found: f"{found[0][:-1]}\\x{ord(found[0][-1]):02x}", printable(text, ""))


def message_lines(text: str) -> str:
    """A message of several lines, those after the first indented: none of them looks like a line of its own."""
    return f"\n{INDENT}".join(map(one_line, text.split("\n")))


def _is_seen(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
