"""Broken and odd inputs of every kind, each with its expected outcome: `python -m tests.corpus`."""

from tests.corpus import images, kept, lists, settings  # each adds its cases
from tests.corpus.case import CASES, Case, Found, observe, row

__all__ = ["CASES", "Case", "Found", "images", "kept", "lists", "observe", "row", "settings"]
