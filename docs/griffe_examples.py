"""Doctests of the section "Example" as code on the reference pages."""

from __future__ import annotations

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Extension that reads "Example:" like "Examples:", the only name that griffe knows for a section of doctests."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section in the docstring of `obj`."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
