"""What a run takes on machines that are not there, and whether the one that is here is ready for it."""
