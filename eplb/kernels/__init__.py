"""Compiled algorithms on plain arrays. Each has a plain Python twin in the tests as its oracle.

Kernel modules compile where they are imported: import them inside the function that runs them, never at module level.
"""
