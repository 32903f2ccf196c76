"""What Label Studio talks to: HTTP app, queue, workers, command line."""
