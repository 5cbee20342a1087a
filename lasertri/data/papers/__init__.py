"""The papers' tasks: a table, where rows come from, the forms they are put in, and a file for each dataset."""
