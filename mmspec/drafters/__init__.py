"""Drafters: they propose token trees; none of them can change the text."""
