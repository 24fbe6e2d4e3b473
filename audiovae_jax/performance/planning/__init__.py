"""Planning runs for machines that are not here, and checking the one that is."""
