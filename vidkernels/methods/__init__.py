"""Published methods, one file each: `list_methods()`, `card(name)`, `get(name)`.

Listing names reads the directory only; `card` and `get` import the one file asked for.
"""

from ._card import Card
from ._protocol import Method
from ._registry import card, get, list_methods

__all__ = ["Card", "Method", "card", "get", "list_methods"]
