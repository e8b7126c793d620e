"""Brings into the site the files of the repository's root that its pages link to.

A hook of MkDocs; mkdocs.yml names it.
"""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "LICENSE",
    "nnunet_softseg/ready_model/README.md": "ready_model.md",
}


def on_files(files: Files, *, config: Any) -> Files:
    """Return the files of docs/ and those of the root, whose links begin at docs/ now."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        for place in ("docs/", "../../docs/"):
            text = text.replace(f"]({place}", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with its links to the root's files as they are in the site."""
    for source, page in PAGES.items():
        for link in (f"](../../{source}", f"](../{source}", f"]({source}"):
            markdown = markdown.replace(link, f"]({page}")
    return markdown
