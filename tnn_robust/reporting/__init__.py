"""Records to table rows; nothing here writes to a terminal."""
