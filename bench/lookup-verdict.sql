-- P1b's other side: the same columns from a table, by its primary key.
SELECT * FROM bench.verdict WHERE key_id = :key_id;
