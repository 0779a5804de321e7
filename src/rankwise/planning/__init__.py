"""What a run will train and hold, told before any weight is loaded."""
