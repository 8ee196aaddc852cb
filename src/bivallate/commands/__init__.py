"""The commands of `bivallate`, one file for each family."""
