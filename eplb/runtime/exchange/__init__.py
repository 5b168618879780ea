"""Dispatch and combine: how tokens travel between ranks and back."""
