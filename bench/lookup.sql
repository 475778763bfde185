-- P1's other side: the cheapest thing that a table can be asked.
SELECT v FROM bench.lookup WHERE id = :key_id;
