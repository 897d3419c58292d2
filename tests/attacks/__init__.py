"""Attacks at a fixed rate beside honest clients, and what those notice."""
