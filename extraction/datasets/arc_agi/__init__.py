"""ARC-AGI tasks as text prompts."""
