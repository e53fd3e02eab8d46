"""Widening rules, one per op type."""
