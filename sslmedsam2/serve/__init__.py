"""``serve``: a loaded model behind HTTP, for a viewer or a challenge platform."""
