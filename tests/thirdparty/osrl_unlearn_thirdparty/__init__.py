"""One plugin of each kind, as somebody else would publish them."""
