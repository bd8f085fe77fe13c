"""Know how good a generator is: figures with intervals and floors, memorisation, likelihood."""
