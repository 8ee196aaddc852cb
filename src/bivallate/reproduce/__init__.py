"""The papers' tables, trained and measured again: cells, campaigns, records, verdicts."""
