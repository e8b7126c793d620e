"""Methods against one reference: who is nearer, and does the difference hold."""
