"""File layouts in which dictionaries are published: each is a `_name.py` that says whether a folder is one, and reads it."""
