"""What a run leaves for people: the run report and a picture of every result."""
