"""Attempts to get in where one must not, by class, against real processes (`tests/e2e/test_adversary.py`)."""
