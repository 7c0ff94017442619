"""What is wrong with the text of records."""
