"""Models from and to other programs: one module for each format, read and written exactly."""
