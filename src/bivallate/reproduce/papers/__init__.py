"""The papers' tables and figures as data: cells, claims, and the diagnostics to draw."""
