-- P6: the first page of list_keys, sorted by an index.
SELECT * FROM rk_apikeys.list_keys(sort_by => 'key_id', page_size => 25);
