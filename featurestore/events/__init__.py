"""What arrives: the event contract, one validator for records and for rows of files, and the batch of columns it makes.

A bad record becomes a value (a reason and its bytes), never an exception, and depends on the record alone.
"""
