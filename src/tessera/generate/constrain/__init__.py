"""Output that must match a pattern or a JSON schema, kept to it token by token."""
