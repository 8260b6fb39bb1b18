"""Result rows, their formats and their files."""
