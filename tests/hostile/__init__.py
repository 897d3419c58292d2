"""Publishers that may write chunks, and write what they like: refused, or readable by everybody."""
