"""mkdocs: pages keep the places they have in the repository, so that a link to a file beside docs/ works here and there.

What a page links to outside docs/ (benchmarks/README.md, a pipeline in examples/) becomes part of the site, and so does what that
links to. A link to nothing stays what mkdocs calls it: an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from markdown_it.token import Token

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = "docs"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The pages of docs/ as `docs/NAME.md`, written to the same address as before, and the files that they link to."""
    from mkdocs.structure.files import File

    own = [file for file in files if file.src_dir == config.docs_dir]
    for file in own:
        files.remove(file)
    pages = [file for file in own if file.inclusion.is_included()]
    for file in pages:
        path = f"{DOCS}/{file.src_uri}"
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=file.dest_uri))
    for path in outside([ROOT / DOCS / file.src_uri for file in pages]):
        files.append(File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def outside(pages: list[Path]) -> list[Path]:
    """Files of the repository, not of docs/, that pages link to, directly or through one another."""
    seen = list(pages)
    for page in seen:  # which grows while it is read
        found = [target(page, link) for link in links(page.read_text("utf-8"))] if page.suffix == ".md" else []
        seen += [path for path in dict.fromkeys(found) if path and path.is_file() and path not in seen]
    return [path for path in seen if not path.is_relative_to(ROOT / DOCS) and path.is_relative_to(ROOT)]


def target(page: Path, link: str) -> Path | None:
    """The file that a link names, whether it is there or not; None for an address on the web."""
    path = link.partition("#")[0]
    return None if "://" in link or link.startswith("mailto:") else (page.parent / path).resolve() if path else page


def links(markdown: str) -> list[str]:
    """All addresses of links and pictures, as CommonMark understands them."""
    parsed = MarkdownIt("commonmark").enable("table").parse(markdown)
    return [str(token.attrs[name]) for token in _all(parsed) for name in ("href", "src") if name in token.attrs]


def _all(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _all(token.children or [])
