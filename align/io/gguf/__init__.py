"""GGUF files, llama.cpp's format: which architectures it has, and model directories made from its files."""
