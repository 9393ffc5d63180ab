"""Images by URL: where they may be fetched from, and how, so that nothing else is reached."""
