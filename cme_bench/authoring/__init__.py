"""Write a task of one's own: rows of any common form in, a task file and its rows out."""
