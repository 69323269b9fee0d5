"""The command line: one short module a noun, one short function a verb.

The modules here are imported for `tessera --help`, so they import torch, and what needs it, inside their functions.
"""
