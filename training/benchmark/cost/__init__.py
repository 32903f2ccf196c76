"""What a network costs: operations, parameters, memory and speed; a file a measure (Tables 5, 7 and 12)."""
