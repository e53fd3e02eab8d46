"""What `otter-export triton` copies into a model's directory; the server imports it, not we."""
