"""The long description of distributions: README.md with absolute links, as an index shows it without the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class AbsoluteLinks(MetadataHookInterface):
    """Metadata hook that sets `readme`; links lead to the files of the project's Repository URL."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme of `metadata`."""
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = absolute_links(readme, f"{metadata['urls']['Repository']}/blob/main")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute_links(markdown: str, base: str) -> str:
    """Return `markdown` with every link to a file of the repository as a link to `base`/file."""
    return re.sub(r"\]\((?![a-z]+:|#)([^)]+)\)", rf"]({base}/\1)", markdown)
