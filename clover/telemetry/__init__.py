"""What Clover tells the outside about itself."""
