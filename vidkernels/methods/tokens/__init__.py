"""Fewer tokens: learned, merged or chosen."""
