"""One HTML page of what runs left behind. Reads their files alone: no torch, no model, no network."""
