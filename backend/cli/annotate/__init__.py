"""Commands of people who annotate: outline files, train a project, export."""
