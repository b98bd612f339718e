"""Compare finished arms by rows and seeds, and choose the setting to ship."""
