-- test/security/cursors.sql: damaged and forged cursors for list_keys, for :seconds; run as a manager.
-- A cursor is accepted, and then gives rows of the caller alone, or it is refused with 22023; nothing else. The last line tells.
SET client_min_messages = notice;
SELECT set_config('fuzz.seconds', :'seconds', false), set_config('fuzz.control', :'control', false) \g /dev/null
DO $$
DECLARE
  sorts text[] := ARRAY['name', 'environment', 'key_id', 'created_at', 'updated_at', 'expires_at', 'last_used_at', 'use_count', 'status'];
  keys text[] := ARRAY['000000000000', 'zzzzzzzzzzzz', '0', '', 'key_id__desc', '00000000000é', repeat('a', 2000)];
  pieces text[] := ARRAY['null', 'true', '0', '-1', '1e999', '99999999999999999999', 'infinity', '-infinity', 'now', '', '{}', '=', 'a=b',
    E'\n', E'\x01', 'é', '4714-11-24 BC', '294277-01-01', '2026-01-01 no/where', ''' OR true --', repeat('[', 2000), 'x', 'NaN', '$4::text'];
  ends timestamptz := clock_timestamp() + current_setting('fuzz.seconds')::interval;
  good text[] := '{}';
  c text;
  bytes bytea;
  s text;
  d boolean;
  forward boolean;
  one text;
  n int;
  foreign_rows int;
  accepted int := 0;
  refused int := 0;
  findings int := 0;
BEGIN
  FOREACH s IN ARRAY sorts LOOP
    FOREACH d IN ARRAY ARRAY[false, true] LOOP
      good := good || ARRAY(SELECT cursor FROM rk_apikeys.list_keys(sort_by => s, descending => d, page_size => 3));
    END LOOP;
  END LOOP;
  WHILE clock_timestamp() < ends LOOP
    s := sorts[1 + floor(random() * 9)::int];
    d := random() < 0.5;
    c := good[1 + floor(random() * cardinality(good))::int];
    CASE floor(random() * 6)
      WHEN 0 THEN    -- as it is, with any sort
        NULL;
      WHEN 1 THEN    -- a byte of it
        bytes := convert_to(c, 'UTF8');
        c := convert_from(set_byte(bytes, floor(random() * length(bytes))::int, 1 + floor(random() * 127)::int), 'UTF8');
      WHEN 2 THEN    -- cut
        c := substr(c, 1 + floor(random() * 4)::int, floor(random() * length(c))::int);
      WHEN 3 THEN    -- a byte of what it holds
        bytes := decode(c, 'hex');
        c := encode(set_byte(bytes, floor(random() * length(bytes))::int, floor(random() * 256)::int), 'hex');
      WHEN 4 THEN    -- another value in its place
        one := s || CASE WHEN d THEN '-' ELSE '+' END || CASE WHEN random() < 0.5
          THEN substring(convert_from(decode(c, 'hex'), 'UTF8') FROM '[+-](.{12})') ELSE keys[1 + floor(random() * cardinality(keys))::int] END
          || CASE WHEN random() < 0.9 THEN '=' || pieces[1 + floor(random() * cardinality(pieces))::int] ELSE '' END;
        c := encode(convert_to(one, 'UTF8'), 'hex');
      ELSE           -- noise
        SELECT coalesce(string_agg(chr(1 + floor(random() * 250 + i * 0)::int), ''), '') INTO c
          FROM generate_series(1, floor(random() * 60)::int) i;
    END CASE;
    BEGIN
      forward := random() < 0.5;
      SELECT count(*), count(*) FILTER (WHERE tenant <> current_user) INTO n, foreign_rows
        FROM rk_apikeys.list_keys(sort_by => s, descending => d, after => CASE WHEN forward THEN c END, before => CASE WHEN NOT forward THEN c END);
      accepted := accepted + 1;
      -- the control calls every row foreign
      IF foreign_rows > 0 OR current_setting('fuzz.control')::boolean AND n > 0 THEN
        findings := findings + 1;
        RAISE NOTICE 'finding: foreign rows by %', c;
      END IF;
    EXCEPTION
      WHEN invalid_parameter_value THEN refused := refused + 1;
      WHEN OTHERS THEN
        findings := findings + 1;
        RAISE NOTICE 'finding: % % by %, %, %', SQLSTATE, SQLERRM, s, d, c;
    END;
  END LOOP;
  RAISE NOTICE 'cursors: % accepted, % refused, % findings', accepted, refused, findings;
END
$$;
