"""Files, signals, memory and time: nothing here knows of heads."""
