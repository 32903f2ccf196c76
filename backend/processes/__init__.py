"""Processes of the service: started in order, restarted, ended together."""
