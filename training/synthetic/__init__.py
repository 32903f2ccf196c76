"""Generated scenes with exact masks: shapes, backgrounds, rendering, files."""
