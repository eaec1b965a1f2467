"""sweeper as the client of an HTTP server: the kinds of servers, and a load generator with many users."""
