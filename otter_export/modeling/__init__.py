"""The torch reference: a channel inserted into a Hugging Face model, its heads and its training.

Needs the extra ``[train]``. The rest of the project compares itself with what is here.
"""
