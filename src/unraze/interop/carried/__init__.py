"""Code that goes with an export, so that it opens where Unraze is not: copied, not imported."""
