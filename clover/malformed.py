"""What readers raise for a malformed document."""

from __future__ import annotations

import msgspec

MALFORMED = (ValueError, RecursionError, msgspec.MsgspecError)
"""What readers of JSON and TOML raise of what is none: beside their own errors those of text that is no UTF-8, of a
number with too many digits, and of nesting beyond their limit."""
