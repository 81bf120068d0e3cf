"""What functions give back: dictionaries with the keys of the command's ``--json``, typed."""
