"""Other tools that show a training as it goes: a writer of a run's track for each.

What they have in common is `unraze.interop.tracking.Tracker`.
"""
