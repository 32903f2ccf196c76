"""Few-shot learning: new classes for a frozen detector from a handful of annotated photographs, in minutes."""
