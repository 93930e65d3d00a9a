"""Benches: many agents, trained and measured once, and the tables made from them."""
