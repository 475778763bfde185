-- Walks :pages pages of 1,000 keys, and prints what the next page begins after: cursor, sort value, key id; psql reads it.
CREATE TEMP TABLE walk AS SELECT * FROM rk_apikeys.list_keys(sort_by => :'sort', page_size => 1000);
SELECT set_config('bench.sort', :'sort', false), set_config('bench.pages', :'pages', false) \g /dev/null
DO $$
BEGIN
  FOR page IN 2 .. current_setting('bench.pages')::int LOOP
    CREATE TEMP TABLE next_walk AS SELECT l.* FROM (SELECT cursor FROM walk OFFSET 999) w,
      rk_apikeys.list_keys(sort_by => current_setting('bench.sort'), page_size => 1000, after => w.cursor) l;
    DROP TABLE walk;
    ALTER TABLE next_walk RENAME TO walk;
  END LOOP;
END $$;
COPY (SELECT cursor, coalesce(to_jsonb(walk) ->> current_setting('bench.sort'), 'infinity'), key_id FROM walk OFFSET 999) TO STDOUT;
