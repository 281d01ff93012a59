"""What the words after ``rare`` do."""
