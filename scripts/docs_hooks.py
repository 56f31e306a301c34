"""What mkdocs does beside its plug-ins: pages of the repository's root, and links out of docs/."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Pages of the site that are files of the root.
PAGES = {"security.md": "SECURITY.md", "changelog.md": "CHANGELOG.md"}
_SITE_PAGES = {source: page for page, source in PAGES.items()}
_LINK = re.compile(r"\]\((?:\.\./)*(SECURITY|CHANGELOG)\.md(#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page: of the root's file where it stands for one, links to those mended."""
    name = page.file.src_uri
    if name in PAGES:
        markdown = (ROOT / PAGES[name]).read_text(encoding="utf-8")
    up = "../" * name.count("/")
    return _LINK.sub(
        lambda found: f"]({up}{_SITE_PAGES[found[1] + '.md']}{found[2] or ''})", markdown
    )
