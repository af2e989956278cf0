"""Where things are: the checkout, its cassettes, and the facts beside it, which only some machines have."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
CASSETTES = ROOT / "cassettes"
# Measured facts and recordings; a test that needs them skips where they are absent.
BESIDE = ROOT.parent / "shared"
