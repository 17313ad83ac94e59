"""Blind votes between models on a local web page, and the preference data that they become."""
