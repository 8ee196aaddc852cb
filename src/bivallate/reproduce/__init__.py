"""Reproduction of the papers' tables: cells, campaigns, records, verdicts."""
