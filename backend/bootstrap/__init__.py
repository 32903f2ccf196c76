"""Sets the project up before anything is installed: standard library only, and a Python too old says so."""
