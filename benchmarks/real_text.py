"""Real English text that every machine has: descriptions of installed Python packages, their licences, and Python's manual.

python -m benchmarks.real_text out/texts.txt --count 200
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics

SHORTEST, LONGEST = 40, 600  # characters
# Read first, in this order, so that the first texts are the same wherever these are installed.
FIRST = ("transformers", "torch", "onnx", "numpy", "onnxruntime", "huggingface-hub", "rich", "click")


def sentences(count: int, skip: int = 0) -> list[str]:
    """`count` different sentences or paragraphs in a fixed order for a given set of packages, after `skip` others.

    Raises ValueError when the machine has fewer.
    """
    found: dict[str, None] = {}
    for text in _texts():
        found |= dict.fromkeys(_paragraphs(text))
        if len(found) >= skip + count:
            return list(found)[skip : skip + count]
    raise ValueError(f"{skip + count} sentences asked for, the installed packages have {len(found)}")


def _texts() -> Iterator[str]:
    for package in sorted(metadata.distributions(), key=_place):
        yield from (str(package.metadata.get_payload()), *_licences(package))
    yield from (topics[name] for name in sorted(topics))


def _place(package: metadata.Distribution) -> tuple[int, str]:
    name = str(package.metadata["Name"]).lower().replace("_", "-")
    return (FIRST.index(name) if name in FIRST else len(FIRST), name)


def _licences(package: metadata.Distribution) -> list[str]:
    names = [f for f in package.files or [] if f.name.upper().startswith(("LICENSE", "NOTICE", "COPYING")) and f.suffix != ".py"]
    return [f.read_text() or "" for f in names if Path(str(f.locate())).is_file()]


def _paragraphs(text: str) -> list[str]:
    """Runs of prose: no code blocks, tables, badges or links."""
    plain = re.sub(r"```.*?```|<[^>]+>|!?\[([^\]]*)\]\([^)]*\)|https?://\S+", r"\1", text, flags=re.S)
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n|\n\s*[-*#|]", plain))
    return [b for b in blocks if SHORTEST <= len(b) <= LONGEST and b[0].isalpha() and sum(c.isalpha() for c in b) > 0.7 * len(b)]


def main() -> None:
    """Write the sentences to a file, one a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=200)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(sentences(arguments.count)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
