"""Answering many requests at once: the engine, the OpenAI-compatible server around it, and conversations."""
