"""Self-contained pages and charts: HTML and SVG, light and dark, readable on a phone.

| module | holds |
|---|---|
| `render`, `templates/` | Jinja2 templates, filled and written; what all pages have in common |
| `svg` | charts: scales, marks, labels that do not overlap |
"""
