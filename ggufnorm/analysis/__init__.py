"""What is made of runs and files: one package per command."""
