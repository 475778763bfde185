-- P13: the cheapest request of all.
SELECT 1;
