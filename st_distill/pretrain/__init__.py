"""Masked-language-model pretraining: from texts to an encoder that sentence-transformers can start from."""
