"""Rows and tables that more than one command shows."""
