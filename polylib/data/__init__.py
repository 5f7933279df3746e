"""Rows in, clean rows, rejects, splits and pairs out. `prepare.prepare` walks the whole way."""
