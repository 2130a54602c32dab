"""MkDocs hook: links from a page to a file outside docs/ lead to the repository."""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite relative links that leave docs/; MkDocs checks those that stay."""
    folder = posixpath.dirname(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, match.group(1)))
        if target.startswith("docs/"):
            return match.group(0)
        return f"]({config.repo_url.rstrip('/')}/blob/main/{target}{match.group(2) or ''})"

    return LINK.sub(rewrite, markdown)
