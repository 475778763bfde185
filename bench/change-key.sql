\set n random(1, 1000)
UPDATE rk_apikeys.keys SET description = 'Changed ' || random() WHERE key_id = (SELECT key_id FROM bench.changing WHERE n = :n);
