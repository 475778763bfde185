-- What a backend calls: the verdict with every column.
SELECT * FROM rk_apikeys.verify_key(:token, 'records:read');
