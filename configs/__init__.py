"""Configurations: which experiment is run with which numbers. Plain data only."""
