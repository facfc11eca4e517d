"""What each file of a run folder holds, and what is legal in it: one schema per file."""
