"""What a result says, and the formats that show it."""
