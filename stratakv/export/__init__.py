"""The same profile for other runtimes: one file each."""
