"""What users type: the command line, its flags, and files in and out."""
