"""Label Studio's API, webhooks, labelling configuration and tasks."""
