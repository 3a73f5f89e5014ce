"""Reports for people: HTML pages and plots."""
