"""A deployment examined from where a worker will stand: what is wrong, what will be, and what to mend. Changes nothing.

Each module asks one party (Kafka, Redis, what is stored, what is served here) and answers with findings.
"""
