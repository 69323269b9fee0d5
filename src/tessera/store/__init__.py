"""A run on disk: its directory, its database and its checkpoints.

`run.Run` is the door; `run.list_runs` finds the runs under a folder.
"""
