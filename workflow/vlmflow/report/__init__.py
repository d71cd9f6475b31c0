"""The page that shows what training did: one self-contained HTML file."""
