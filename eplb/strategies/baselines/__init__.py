"""Strategies that look at no load, and DeepSeek's algorithm as published."""
