"""Reports as one file of HTML."""
