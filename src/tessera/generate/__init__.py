"""From a model and a prompt to text."""
