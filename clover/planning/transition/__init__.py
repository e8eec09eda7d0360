"""From one deployment to another without dropping a row."""
