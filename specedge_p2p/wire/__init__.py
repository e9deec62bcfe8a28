"""What node and coordinator say to each other. Pure."""
