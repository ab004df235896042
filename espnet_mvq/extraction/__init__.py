"""Extraction: from the audio of a corpus to teacher embeddings and their indexes."""
