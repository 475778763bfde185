-- P6: a page of list_keys; a deep page begins after a cursor.
SELECT * FROM rk_apikeys.list_keys(sort_by => '{sort}', page_size => 25{after});
