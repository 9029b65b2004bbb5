"""What image and audio encoders are fed."""
