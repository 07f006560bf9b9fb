"""What each command means, end to end."""
