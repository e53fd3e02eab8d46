"""Decoding methods: one frozen dataclass and one pure function each."""
