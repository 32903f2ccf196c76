"""All use of Redis: jobs, leases, claims, heartbeats, recovery, locks."""
