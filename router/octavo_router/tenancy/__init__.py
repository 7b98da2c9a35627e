"""Who sends a request, what it may use, and what it used."""
