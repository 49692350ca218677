"""The commands of `ebbtide`, one a module: each imports what it needs and is itself imported only when it is called.

A module has `command`, a click command or group. `ops/cli.py` lists them with a line of help each.
"""
