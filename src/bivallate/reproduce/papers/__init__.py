"""The papers' tables and figures as data: cells, reported numbers, claims."""
