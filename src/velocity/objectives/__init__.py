"""What a run is trained towards."""
