"""What the queue does: one kind of work, one file. Each is a generator of stages, see `work`."""
