"""Detectors: how suspicious every row of a dataset is, when nobody says which rows are poisoned."""
