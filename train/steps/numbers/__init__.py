"""Numbers that are none, in a step and in what is read: refused, looked for, or made the same every time."""
