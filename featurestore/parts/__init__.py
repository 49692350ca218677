"""A log in hash parts of customers, and who works on them: processes of this machine, or Spark. Customers share
nothing in the fold, so how they are dealt out shows in nothing but the time it takes. What an engine runs is a plain
function of one part, the same for all engines."""
