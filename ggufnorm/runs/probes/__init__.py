"""What can be measured on a run: one probe per measurement."""
