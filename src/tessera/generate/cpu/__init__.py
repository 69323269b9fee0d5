"""A step of a Llama-like decoder in one call of machine code, on weights as they are stored."""
