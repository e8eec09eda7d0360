"""What readers raise for a malformed document."""

from __future__ import annotations

import msgspec

MALFORMED = (ValueError, RecursionError, msgspec.MsgspecError)
"""What readers of JSON and TOML raise for a malformed document: their own errors, and those for text that is not UTF-8,
a number with too many digits, and nesting that is too deep."""
