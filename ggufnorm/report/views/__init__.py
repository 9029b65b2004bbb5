"""What each kind of result says: one module per kind, one function from result to reports."""
