"""Results put side by side: as a table, a page and plots."""
