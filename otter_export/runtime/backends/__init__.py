"""What runs an engine's model: one library per module."""
