"""How the tables came to be, a file for each version. See CONTRIBUTING for how to add one."""
