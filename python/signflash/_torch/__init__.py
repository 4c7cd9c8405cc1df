"""Everything that knows PyTorch. Imported when the first tensor comes."""
