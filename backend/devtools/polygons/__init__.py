"""Ways to outline a mask, compared and drawn."""
