"""One plan for many loads."""
