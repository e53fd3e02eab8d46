"""Files that `otter-export triton` copies into a model's directory; the server imports them."""
